"""Learning rate as a pure function of tokens consumed before the step.

Nothing is remembered between steps, so a resumed run, another world size or a recomputed curve see the same
values. In steps s (tokens over tokens per step), with warmup w and end T:

    s < w    peak · s / w                                   the first update has learning rate 0, as Amber's
    cosine   min + (peak - min) · ½ (1 + cos(π (s - w) / (T - w)))
    linear   min + (peak - min) · (1 - (s - w) / (T - w))
    constant peak
    s ≥ T    min (cosine, linear)
"""

from __future__ import annotations

import math

from pretrain.config.schedule import ScheduleConfig
from pretrain.errors import ConfigError
from pretrain.units import Duration


def learning_rate(config: ScheduleConfig, tokens: int, *, total_tokens: int, tokens_per_step: int) -> float:
    """Learning rate of the update that follows `tokens` consumed tokens.

    Args:
        config: the schedule.
        tokens: tokens trained on before this step, over all ranks.
        total_tokens: tokens of the whole run; the decay ends here when `config.decay` is null.
        tokens_per_step: tokens of one step.

    Raises:
        ConfigError: the schedule's kind is unknown.
    """
    # Whole steps divide exactly, so the values are bit for bit those of the published step-based code.
    step = tokens / tokens_per_step
    warmup = Duration.parse(config.warmup, key="schedule.warmup").tokens(tokens_per_step=tokens_per_step)
    warmup_steps = warmup / tokens_per_step
    peak, low = config.learning_rate, config.min_learning_rate
    if step < warmup_steps:
        return peak * step / warmup_steps
    if config.kind == "constant":
        return peak
    end = total_tokens
    if config.decay is not None:
        end = Duration.parse(config.decay, key="schedule.decay").tokens(tokens_per_step=tokens_per_step)
    end_steps = end / tokens_per_step
    if step >= end_steps:
        return low
    progress = (step - warmup_steps) / (end_steps - warmup_steps)
    if config.kind == "cosine":
        return low + 0.5 * (1.0 + math.cos(math.pi * progress)) * (peak - low)
    if config.kind == "linear":
        return low + (1.0 - progress) * (peak - low)
    raise ConfigError(f"schedule.kind={config.kind} is unknown. Allowed: cosine, linear, constant.")
