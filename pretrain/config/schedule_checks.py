"""Rules on the batch ramp and the learning-rate schedule, against each other and the length of the run.

The part of `pretrain.config.checks` that needs the arithmetic of steps and tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pretrain.batch_size import BatchSizes
from pretrain.config.run import RunConfig
from pretrain.config.schedule import ScheduleConfig, parse_decay_length
from pretrain.errors import ConfigError
from pretrain.units import Duration


def schedule_problems(config: RunConfig) -> Iterator[str]:
    """Problems of a configuration whose ranges and durations are right, each with what would do."""
    shapes = list(_shape_problems(config.schedule))
    yield from shapes
    try:
        batch_sizes = config.batch_sizes
    except ConfigError as error:
        yield from error.problems
        return
    if (config.train.steps is None) != (config.train.tokens is None):
        yield from _end_problems(config, batch_sizes)
        if not shapes:
            yield from _begin_problems(config, batch_sizes)


def _shape_problems(schedule: ScheduleConfig) -> Iterator[str]:
    if schedule.kind not in ("constant", "multi_step") and schedule.min_learning_rate > schedule.learning_rate:
        yield (
            f"schedule.min_learning_rate={schedule.min_learning_rate} is above "
            f"schedule.learning_rate={schedule.learning_rate}, the peak. Lower the first or raise the second."
        )
    if schedule.kind == "wsd":
        if schedule.decay_shape == "exponential" and not schedule.min_learning_rate > 0:
            yield (
                f"schedule.decay_shape=exponential never reaches schedule.min_learning_rate="
                f"{schedule.min_learning_rate}: it falls by equal factors. Give a minimum above 0, or another shape."
            )
        try:
            parse_decay_length(schedule.decay_length)
        except ConfigError as error:
            yield from error.problems
    if schedule.kind == "multi_step":
        yield from _step_problems(schedule.step_shares, schedule.step_factors)


def _step_problems(shares: list[float], factors: list[float]) -> Iterator[str]:
    if not shares or len(shares) != len(factors):
        yield (
            f"schedule.step_shares={shares} and schedule.step_factors={factors} have {len(shares)} and {len(factors)} "
            f"entries: each share needs its factor, as [0.8, 0.9] and [0.316, 0.1]."
        )
    if not _rises([0.0, *shares, 1.0]):
        yield f"schedule.step_shares={shares} must rise, and lie between 0 and 1: they are shares of all tokens."
    if not _rises([0.0, *reversed(factors), 1.0]):
        yield f"schedule.step_factors={factors} must fall, and lie between 0 and 1: they multiply the peak."


def _rises(values: list[float]) -> bool:
    return all(low < high for low, high in itertools.pairwise(values))


def _end_problems(config: RunConfig, batch_sizes: BatchSizes) -> Iterator[str]:
    schedule, total, start = config.schedule, config.total_steps, config.checkpoint.start_step
    if start and start >= total:
        yield f"checkpoint.start_step={start} leaves nothing to train: the run is {total} steps long. Train longer."
    warmup = batch_sizes.steps_of(Duration.parse(schedule.warmup, key="schedule.warmup"))
    if warmup > total:
        yield (
            f"schedule.warmup={schedule.warmup!r} is {warmup} steps, longer than the run of {total} steps. "
            f"Use at most '{total} steps', or train longer."
        )
    if schedule.decay is not None:
        decay = batch_sizes.steps_of(Duration.parse(schedule.decay, key="schedule.decay"))
        if decay < warmup:
            yield (
                f"schedule.decay={schedule.decay!r} ends at step {decay}, before the warmup's end at step {warmup}; "
                f"it counts from the start of the run. Use null (the whole run) or at least '{warmup} steps'."
            )


def _begin_problems(config: RunConfig, batch_sizes: BatchSizes) -> Iterator[str]:
    """What follows the warmup must begin after it. Silent where the whole is too short, which is told already."""
    schedule, total_tokens = config.schedule, config.total_tokens
    warmup, end = schedule.warmup_tokens(batch_sizes), schedule.end_tokens(batch_sizes, total_tokens=total_tokens)
    if warmup > min(end, total_tokens):
        return
    if schedule.kind == "wsd":
        start = schedule.decay_start_tokens(batch_sizes, end_tokens=end)
        if start < warmup:
            yield (
                f"schedule.decay_length={schedule.decay_length!r} before token {end} begins at token {max(start, 0)}, "
                f"before the end of schedule.warmup={schedule.warmup!r} at token {warmup}. Use at most "
                f"'{end - warmup} tokens', or train longer."
            )
    if schedule.kind == "multi_step" and round(schedule.step_shares[0] * end) < warmup:
        yield (
            f"schedule.step_shares={schedule.step_shares} begin at token {round(schedule.step_shares[0] * end)} of "
            f"{end}, before the end of schedule.warmup={schedule.warmup!r} at token {warmup}. Shorten the warmup, or "
            f"train longer."
        )
