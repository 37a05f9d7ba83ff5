"""The training row of every step: loss, gradient norm, learning rate, speed, tokens per source."""

from __future__ import annotations

from pretrain.flops import mfu, peak_flops
from pretrain.hooks.base import Run, StepReport
from pretrain.track import names


class MetricsHook:
    """Logs one row per step.

    Args:
        flops_per_token: training FLOPs per token (definition A of `pretrain.flops`).
        device_name: device of each rank, to find its peak.
        compute: `bf16` or `fp32`.
    """

    def __init__(self, *, flops_per_token: float, device_name: str, compute: str) -> None:
        self._flops_per_token = flops_per_token
        self._peak = peak_flops(device_name, compute)

    def on_start(self, run: Run) -> None:
        """Nothing to prepare."""

    def on_step(self, run: Run, report: StepReport) -> None:
        """Logs the step; says so when the update was not applied."""
        result, state = report.result, run.state
        tokens_per_second = result.tokens / report.seconds
        values = {
            names.TRAIN_LOSS: result.loss,
            names.TRAIN_GRAD_NORM: result.grad_norm,
            names.TRAIN_LEARNING_RATE: report.learning_rate,
            names.PERF_TOKENS_PER_SECOND: tokens_per_second,
            names.PERF_STEP_SECONDS: report.seconds,
            names.FLOPS: self._flops_per_token * state.tokens,
        }
        share = mfu(tokens_per_second, self._flops_per_token, self._peak, num_devices=run.job.world_size)
        if share is not None:
            values[names.PERF_MFU] = share
        for source, tokens in state.source_tokens.items():
            values[names.source_tokens(source)] = tokens
        run.tracker.log(values, step=state.step, tokens=state.tokens)
        if result.skipped:
            run.tracker.event(
                "update_skipped",
                {"loss": str(result.loss), "grad_norm": str(result.grad_norm), "first_sample": state.samples},
                step=state.step,
            )

    def on_save(self, run: Run) -> None:
        """Nothing to do."""

    def on_end(self, run: Run) -> None:
        """Nothing to do."""
