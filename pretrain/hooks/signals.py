"""Stopping in good order: on SIGTERM, SIGINT or SIGUSR1 to any rank, all ranks save after the present step.

Several GPUs stop up to two steps later: the next step has been given to them already, and what the other ranks answer
is read a step after it was asked, so that nobody waits for it.

Slurm sends the signal before the time limit or a preemption. The same command started again continues.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from pretrain.hooks.base import Run, StepReport

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class SignalsHook:
    """Sets `run.stopping` on every rank in the same step."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._asked: Callable[[], bool] | None = None

    def on_start(self, run: Run) -> None:
        """Installs the handlers."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def on_step(self, run: Run, report: StepReport) -> None:
        """One small all-reduce: whether any rank was asked to stop."""
        answer = run.job.ask(self._received is not None)
        if run.job.answers_late:
            answer, self._asked = self._asked or (lambda: False), answer
        if answer() and not run.stopping:
            run.stopping = True
            run.tracker.event("stopping", step=report.state.step, signal=self._received or "on another rank")

    def on_save(self, run: Run) -> None:
        """Nothing to do."""

    def on_end(self, run: Run) -> None:
        """Gives the signals back."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = signal.Signals(number).name
