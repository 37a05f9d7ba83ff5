"""Learning rate as a pure function of tokens consumed before the step.

Nothing is remembered between steps, so a resumed run, another world size or a recomputed curve see the same
values. With tokens s, warmup w, end T (the whole run, or `decay`), wsd's start of decay d and f = (s - d) / (T - d):

    s < w       peak · s / w                             the first update has learning rate 0, as Amber's
    cosine      min + (peak - min) · ½ (1 + cos(π f))    d = w
    linear      min + (peak - min) · (1 - f)             d = w
    constant    peak
    wsd         peak up to d, then linear, cosine, or
      1-sqrt      min + (peak - min) · (1 - √f)
      exponential peak · (min / peak)^f
    multi_step  peak · the factor of the last share of T that is reached, 1 before the first
    s ≥ T       min (cosine, linear, wsd)

Where the run's length sets T, a longer run has another decay; constant and wsd's stable part stay as they were.
"""

from __future__ import annotations

import math

from pretrain.batch_size import BatchSizes
from pretrain.config.schedule import ScheduleConfig
from pretrain.errors import ConfigError


def learning_rate(config: ScheduleConfig, tokens: int, *, total_tokens: int, batch_sizes: BatchSizes) -> float:
    """Learning rate of the update that follows `tokens` consumed tokens.

    Args:
        config: the schedule.
        tokens: tokens trained on before this step, over all ranks.
        total_tokens: tokens of the whole run; the decay ends here when `config.decay` is null.
        batch_sizes: where steps begin; turns durations in steps into tokens.

    Raises:
        ConfigError: the schedule's kind or shape is unknown.
    """
    # Whole steps divide exactly, so the values are bit for bit those of the published step-based code.
    unit = batch_sizes.full_step_tokens
    step, peak = tokens / unit, config.learning_rate
    warmup = config.warmup_tokens(batch_sizes)
    if step < warmup / unit:
        return peak * step / (warmup / unit)
    if config.kind == "constant":
        return peak
    end = config.end_tokens(batch_sizes, total_tokens=total_tokens)
    if config.kind == "multi_step":
        return peak * _factor(config, tokens, end)
    if step >= end / unit:
        return config.min_learning_rate
    start, shape = warmup, config.kind
    if config.kind == "wsd":
        start, shape = max(warmup, config.decay_start_tokens(batch_sizes, end_tokens=end)), config.decay_shape
        if tokens < start:
            return peak
    return _decayed(shape, (step - start / unit) / (end / unit - start / unit), config)


def _factor(config: ScheduleConfig, tokens: int, end: int) -> float:
    """Factor of the last share reached. Shares are rounded to whole tokens: 0.8 has no exact binary form."""
    reached = sum(tokens >= round(share * end) for share in config.step_shares)
    return config.step_factors[reached - 1] if reached else 1.0


def _decayed(shape: str, progress: float, config: ScheduleConfig) -> float:
    """Rate at `progress` of the decay, from 0 to 1."""
    peak, low = config.learning_rate, config.min_learning_rate
    if shape == "cosine":
        return low + 0.5 * (1.0 + math.cos(math.pi * progress)) * (peak - low)
    if shape == "linear":
        return low + (1.0 - progress) * (peak - low)
    if shape == "1-sqrt":
        return low + (1.0 - math.sqrt(progress)) * (peak - low)
    if shape == "exponential":
        return float(peak * (low / peak) ** progress)
    key = "decay_shape" if config.kind == "wsd" else "kind"
    raise ConfigError(f"schedule.{key}={shape} is unknown: see `pretrain.config.checks` for what there is.")
