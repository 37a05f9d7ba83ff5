"""Stopping in good order: on SIGTERM, SIGINT or SIGUSR1 to any rank, all ranks save after the present step.

Slurm sends the signal before the time limit or a preemption. The same command started again continues.
"""

from __future__ import annotations

import signal
from types import FrameType

from pretrain.hooks.base import Run, StepReport

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class SignalsHook:
    """Sets `run.stopping` on every rank in the same step."""

    def __init__(self) -> None:
        self._received: str | None = None

    def on_start(self, run: Run) -> None:
        """Installs the handlers."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def on_step(self, run: Run, report: StepReport) -> None:
        """One small all-reduce: whether any rank was asked to stop."""
        if run.job.any(self._received is not None):
            run.stopping = True
            run.tracker.event("stopping", step=run.state.step, signal=self._received or "on another rank")

    def on_save(self, run: Run) -> None:
        """Nothing to do."""

    def on_end(self, run: Run) -> None:
        """Gives the signals back."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = signal.Signals(number).name
