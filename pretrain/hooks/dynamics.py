"""When a step is measured layer by layer, and the figures' way into its row.

What is measured and how is the engine's matter (`StepResult.dynamics`). Here is only the calendar: a function of
the step, so that a resumed run measures the same steps.
"""

from __future__ import annotations

from pretrain.hooks.base import Run, StepReport
from pretrain.units import Duration


class DynamicsHook:
    """Asks for the first step and for every multiple of a duration to be observed.

    Args:
        every: `track.dynamics.every`; a multiple of tokens is observed in the step that reaches it.
    """

    def __init__(self, every: str) -> None:
        self._every = Duration.parse(every, key="track.dynamics.every")

    def on_start(self, run: Run) -> None:
        """Says whether the next step is to be observed."""
        self._look_ahead(run)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Adds what was observed to the row of the step just done."""
        if report.result.dynamics is not None:
            run.tracker.log(report.result.dynamics, step=run.state.step, tokens=run.state.tokens)
        self._look_ahead(run)

    def on_save(self, run: Run) -> None:
        """Nothing to do."""

    def on_end(self, run: Run) -> None:
        """Nothing to do."""

    def _look_ahead(self, run: Run) -> None:
        upcoming = run.state.step + 1
        run.observe_next = upcoming == 1 or run.config.batch_sizes.holds_multiple(self._every, step=upcoming)
