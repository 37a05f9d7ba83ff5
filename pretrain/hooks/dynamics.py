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
        """Says which steps are to be observed."""
        sizes = run.config.batch_sizes
        run.is_observed = lambda step: step == 1 or sizes.holds_multiple(self._every, step=step)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Adds what was observed to the row of the step just done."""
        if report.result.dynamics is not None:
            run.tracker.log(report.result.dynamics, step=report.state.step, tokens=report.state.tokens)

    def on_save(self, run: Run) -> None:
        """Nothing to do."""

    def on_end(self, run: Run) -> None:
        """Nothing to do."""
