"""The training row of every step: loss, gradient norm, learning rate, speed, tokens per source."""

from __future__ import annotations

from collections.abc import Mapping

from pretrain.flops import FlopsPerToken, mfu
from pretrain.hooks.base import Run, StepReport
from pretrain.track import names


class MetricsHook:
    """Logs one row per step.

    Args:
        flops_per_token: training FLOPs of one token.
        device_name: device of each rank as its driver names it, to find its peak.
        epoch_tokens: tokens of one pass over each data source.
    """

    def __init__(self, *, flops_per_token: FlopsPerToken, device_name: str, epoch_tokens: Mapping[str, int]) -> None:
        self._flops_per_token = flops_per_token
        self._epoch_tokens = epoch_tokens
        self._device_name = device_name

    def on_start(self, run: Run) -> None:
        """Nothing to prepare."""

    def on_step(self, run: Run, report: StepReport) -> None:
        """Logs the step; says so when the update was not applied."""
        result, state = report.result, report.state
        tokens_per_second = result.tokens / report.seconds
        values = {
            names.TRAIN_LOSS: result.loss,
            names.TRAIN_GRAD_NORM: result.grad_norm,
            names.TRAIN_LEARNING_RATE: report.learning_rate,
            names.PERF_TOKENS_PER_SECOND: tokens_per_second,
            names.PERF_STEP_SECONDS: report.seconds,
            names.PERF_DATA_SECONDS: report.data_seconds,
            names.FLOPS: self._flops_per_token.matmul * state.tokens,
        }
        if result.z_loss is not None:
            values[names.TRAIN_Z_LOSS] = result.z_loss
        share = mfu(
            tokens_per_second,
            self._flops_per_token.full_attention,
            num_devices=run.job.world_size,
            device_name=self._device_name,
        )
        if share is not None:
            values[names.PERF_MFU] = share
        for source, tokens in state.source_tokens.items():
            values[names.source_tokens(source)] = tokens
            values[names.source_epochs(source)] = tokens / self._epoch_tokens[source]
        run.tracker.log(values, step=state.step, tokens=state.tokens)
        if result.skipped:
            run.tracker.event(
                "update_skipped",
                step=state.step,
                loss=str(result.loss),
                grad_norm=str(result.grad_norm),
                end_sample=state.samples,
            )

    def on_save(self, run: Run) -> None:
        """Nothing to do."""

    def on_end(self, run: Run) -> None:
        """Nothing to do."""
