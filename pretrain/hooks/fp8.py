"""The gate of fp8: at every save its loss is held against bf16's on the same tokens and weights."""

from __future__ import annotations

from pretrain.errors import EngineError
from pretrain.hooks.base import Run, StepReport
from pretrain.track import names


class Fp8Hook:
    """Ends a run whose fp8 products lose more than they may.

    Args:
        tolerance: largest difference of the two losses, in nats per token.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance

    def on_start(self, run: Run) -> None:
        """Nothing to prepare."""

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing to do."""

    def on_save(self, run: Run) -> None:
        """Compares on the tokens of the last step, before this step's checkpoint is written.

        Raises:
            EngineError: the difference is larger than allowed, or not finite; on every rank.
        """
        if not run.calendar.is_due(run.state.step) or run.state.step == run.info.resume_step:
            return
        gap = run.engine.fp8_loss_gap()
        if gap is None:
            return
        run.tracker.log({names.FP8_LOSS_GAP: gap}, step=run.state.step, tokens=run.state.tokens)
        if not abs(gap) <= self._tolerance:
            run.tracker.event("fp8_refused", step=run.state.step, gap=str(gap))
            raise EngineError(
                f"precision.fp8=true: at step {run.state.step} the loss in fp8 is {gap:+.4f} nats per token off that "
                f"in bf16; precision.fp8_tolerance={self._tolerance} is allowed. Earlier checkpoints are intact: start "
                f"again with precision.fp8=false to go on from the last one in bf16, or allow more."
            )

    def on_end(self, run: Run) -> None:
        """Nothing to do."""
