"""Which steps are saved: a pure function of the configuration, so that a resumed run keeps the calendar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pretrain.batch_size import BatchSizes
from pretrain.config.checkpoint import CheckpointConfig
from pretrain.errors import ConfigError
from pretrain.units import Duration


@dataclass(frozen=True, slots=True)
class Calendar:
    """The steps at which a run saves.

    Attributes:
        last_step: the run's last step; always saved.
    """

    last_step: int
    _due: frozenset[int] = field(repr=False)

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` optimizer steps; step 0 is the initial model."""
        return step in self._due

    def steps(self) -> list[int]:
        """All saved steps, ascending."""
        return sorted(self._due)


def save_steps(
    config: CheckpointConfig, *, total_steps: int, batch_sizes: BatchSizes, chunk_ends: Iterable[int] = ()
) -> Calendar:
    """Lays out the calendar of a run.

    Args:
        config: the `checkpoint` group.
        total_steps: optimizer steps of the whole run.
        batch_sizes: converts `every` where it is in tokens. A multiple that falls within a step is saved after
            that step, so the calendar does not drift.
        chunk_ends: steps that complete a chunk of data.order=chunked.

    Returns:
        Early steps up to the end, every multiple of `every`, the end of every chunk, and the last step.

    Raises:
        ConfigError: `every` is zero or no duration, or an early step is negative.
    """
    every = Duration.parse(config.every, key="checkpoint.every")
    problems = [f"checkpoint.early has {step}; steps are 0 or more." for step in config.early if step < 0]
    if every.count < 1:
        problems.append(f"checkpoint.every={config.every!r} must be longer than nothing, for example '1000 steps'.")
    if problems:
        raise ConfigError(problems)
    due = {step for step in (*config.early, *chunk_ends) if step <= total_steps} | {total_steps}
    return Calendar(total_steps, frozenset(due | _multiples(every, total_steps, batch_sizes)))


def milestone_steps(every: str, *, total_steps: int, batch_sizes: BatchSizes) -> frozenset[int]:
    """The multiples of a duration up to the end of a run, step 0 and the last step."""
    multiples = _multiples(Duration.parse(every), total_steps, batch_sizes)
    return frozenset({0, total_steps} | multiples)


def _multiples(every: Duration, total_steps: int, batch_sizes: BatchSizes) -> set[int]:
    if every.unit == "steps":
        return set(range(every.count, total_steps + 1, every.count))
    num_multiples = batch_sizes.tokens(total_steps) // every.count
    if num_multiples < total_steps:
        return {batch_sizes.steps(multiple * every.count) for multiple in range(1, num_multiples + 1)}
    # Most steps hold a multiple, or many.
    return {step for step in range(1, total_steps + 1) if batch_sizes.holds_multiple(every, step=step)}
