"""Learning rate over consumed tokens; the formulas are in `pretrain.schedule`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pretrain.batch_size import BatchSizes
from pretrain.errors import ConfigError
from pretrain.units import Duration


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    kind: str = "cosine"
    """Shape after the warmup: `cosine`, `linear`, `constant`, `wsd` (stable, then decay) or `multi_step`."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    min_learning_rate: float = 3e-5
    """Learning rate at the end of the decay; `constant` and `multi_step` have none."""
    warmup: str = "2000 steps"
    """Linear warmup from 0, as a duration. The first update has learning rate 0 (as Amber's)."""
    decay: str | None = None
    """Duration at whose end the decay is over, counted from the start of the run; null is the whole run."""
    decay_length: str = "20%"
    """wsd: length of the decay before its end, a duration or a share of all tokens, as `20%` (arXiv 2405.18392)."""
    decay_shape: str = "1-sqrt"
    """wsd: how the rate falls: `linear`, `cosine`, `exponential` (MiniCPM) or `1-sqrt` (arXiv 2405.18392)."""
    step_shares: list[float] = field(default_factory=lambda: [0.8, 0.9])
    """multi_step: shares of all tokens from which on the factors hold, ascending (DeepSeek-LLM)."""
    step_factors: list[float] = field(default_factory=lambda: [0.316, 0.1])
    """multi_step: what the peak is multiplied by from each share on."""

    def warmup_tokens(self, batch_sizes: BatchSizes) -> int:
        """Token at which the warmup is over."""
        return batch_sizes.tokens_of(Duration.parse(self.warmup, key="schedule.warmup"))

    def end_tokens(self, batch_sizes: BatchSizes, *, total_tokens: int) -> int:
        """Token at which the decay is over, in a run of `total_tokens`."""
        if self.decay is None:
            return total_tokens
        return batch_sizes.tokens_of(Duration.parse(self.decay, key="schedule.decay"))

    def decay_start_tokens(self, batch_sizes: BatchSizes, *, end_tokens: int) -> int:
        """Token at which the decay of `wsd` begins; below 0 when it is longer than what it ends.

        Raises:
            ConfigError: `decay_length` is neither a duration nor a share.
        """
        length = parse_decay_length(self.decay_length)
        if isinstance(length, float):
            return end_tokens - round(length * end_tokens)
        if length.unit == "tokens":
            return end_tokens - length.count
        first_step = batch_sizes.steps(end_tokens) - length.count
        return batch_sizes.tokens(first_step) if first_step >= 0 else -1


def parse_decay_length(text: str) -> Duration | float:
    """Reads `schedule.decay_length`: a duration, or a share in 0 … 1 written in percent.

    Raises:
        ConfigError: it is neither.
    """
    if not text.strip().endswith("%"):
        try:
            return Duration.parse(text, key="schedule.decay_length", unit=None)
        except ConfigError as error:
            raise ConfigError(f"{error.problems[0]} Or write a share of the run: '20%'.") from None
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(
            f"schedule.decay_length={text!r} is no share of the run: it must be above 0% and at most 100%, as '20%'."
        )
    return share
