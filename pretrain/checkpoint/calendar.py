"""Which steps are saved, and which of them stay resumable: a pure function of the configuration.

A resumed run keeps the calendar, and so does a longer one up to where the shorter ended.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from pretrain.batch_size import BatchSizes
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.naming import checkpoint_name, has_fields
from pretrain.units import Duration


@dataclass(frozen=True, slots=True)
class Calendar:
    """The steps at which a run saves.

    Attributes:
        last_step: the run's last step; always saved.
    """

    last_step: int
    _due: frozenset[int] = field(repr=False)
    _regular: tuple[int, ...] = field(repr=False, default=())
    _kept: frozenset[int] = field(repr=False, default=frozenset())

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` optimizer steps; step 0 is the initial model."""
        return step in self._due

    def steps(self) -> list[int]:
        """All saved steps, ascending."""
        return sorted(self._due)

    def keeps_state(self, step: int) -> bool:
        """Whether the save of a step keeps its optimizer state for ever: milestones, and the last before a decay."""
        return step in self._kept

    def index(self, step: int) -> int | None:
        """Which chunk end or multiple of `checkpoint.every` a step is, from 0; None where it is neither."""
        place = bisect_right(self._regular, step) - 1
        return place if place >= 0 and self._regular[place] == step else None


def save_steps(config: RunConfig, *, chunk_ends: Iterable[int] = ()) -> Calendar:
    """Lays out the calendar of a run.

    A multiple of tokens that falls within a step is saved after that step, so the calendar does not drift.

    Args:
        config: the resolved configuration.
        chunk_ends: steps that complete a chunk of data.order=chunked; left out with checkpoint.chunk_ends=false.

    Returns:
        Early steps up to the end, log-spaced ones, every multiple of `every`, the end of every chunk, the last step
        before a decay, and the last step.

    Raises:
        ConfigError: a duration is none or zero, or an early step is negative.
    """
    checkpoint, sizes, total = config.checkpoint, config.batch_sizes, config.total_steps
    problems = [f"checkpoint.early has {step}; steps are 0 or more." for step in checkpoint.early if step < 0]
    for key in ("every", "milestones"):
        text = getattr(checkpoint, key)
        if text is not None and Duration.parse(text, key=f"checkpoint.{key}").count < 1:
            problems.append(f"checkpoint.{key}={text!r} must be longer than nothing, for example '1000 steps'.")
    if checkpoint.per_decade is not None and checkpoint.per_decade < 1:
        problems.append(f"checkpoint.per_decade={checkpoint.per_decade} must be at least 1, or null.")
    if problems:
        raise ConfigError(problems)
    ends = {step for step in chunk_ends if step <= total} if checkpoint.chunk_ends else set()
    regular = ends | (_multiples(checkpoint.every, total, sizes) if checkpoint.every is not None else set())
    before_decay = _before_decay(config)
    due = {step for step in checkpoint.early if step <= total} | _log_spaced(config) | regular | before_decay | {total}
    kept = before_decay
    if checkpoint.milestones is not None:
        kept = kept | (due & _multiples(checkpoint.milestones, total, sizes))
    return Calendar(total, frozenset(due), tuple(sorted(regular)), frozenset(kept))


def check_names(config: RunConfig, calendar: Calendar) -> None:
    """Refuses names that two exports of a run would share: the later one would silently take the other's place.

    Raises:
        ConfigError: names by `checkpoint.export_name` or `checkpoint.hub_repository` clash; two saves are named.
    """
    checkpoint, sizes, problems = config.checkpoint, config.batch_sizes, []
    for key in ("export_name", "hub_repository"):
        template, taken = getattr(checkpoint, key), dict[str, int]()
        if template is None or checkpoint.export != "all" or not has_fields(template):
            continue
        for step in calendar.steps():
            name = checkpoint_name(
                template, run=config.run.name, step=step, tokens=sizes.tokens(step), index=calendar.index(step)
            )
            if name in taken:
                problems.append(
                    f"checkpoint.{key}={template!r} gives the saves of steps {taken[name]} and {step} the same name, "
                    f"{name}. Use {{step}} in it, or save less often."
                )
                break
            taken[name] = step
    if problems:
        raise ConfigError(problems)


def milestone_steps(every: str, *, total_steps: int, batch_sizes: BatchSizes) -> frozenset[int]:
    """The multiples of a duration up to the end of a run, step 0 and the last step."""
    return frozenset({0, total_steps} | _multiples(every, total_steps, batch_sizes))


def _multiples(text: str, total_steps: int, batch_sizes: BatchSizes) -> set[int]:
    every = Duration.parse(text)
    if every.unit == "steps":
        return set(range(every.count, total_steps + 1, every.count))
    num_multiples = batch_sizes.tokens(total_steps) // every.count
    if num_multiples < total_steps:
        return {batch_sizes.steps(multiple * every.count) for multiple in range(1, num_multiples + 1)}
    # Most steps hold a multiple, or many.
    return {step for step in range(1, total_steps + 1) if batch_sizes.holds_multiple(every, step=step)}


def _log_spaced(config: RunConfig) -> set[int]:
    """Steps 10^(k / per_decade) times the tokens of the first, each rounded up to a whole step."""
    per_decade, sizes, total = config.checkpoint.per_decade, config.batch_sizes, config.total_steps
    if per_decade is None:
        return set()
    first, last = sizes.tokens(1), sizes.tokens(total)
    count = math.floor(per_decade * math.log10(last / first) + 1e-9)
    # A hair less than each point: a whole step must not become the next one by rounding.
    points = (first * 10 ** (place / per_decade) for place in range(count + 1))
    return {min(total, sizes.steps(math.ceil(point * (1 - 1e-12)))) for point in points}


def _before_decay(config: RunConfig) -> set[int]:
    """The last step at the peak rate, where the schedule is flat before it falls."""
    schedule, sizes = config.schedule, config.batch_sizes
    if not config.checkpoint.before_decay or schedule.kind != "wsd":
        return set()
    end = schedule.end_tokens(sizes, total_tokens=config.total_tokens)
    start = schedule.decay_start_tokens(sizes, end_tokens=end)
    step = sizes.steps(start) if start > 0 else 0  # every update up to here began before the decay
    return {step} if 0 < step < config.total_steps else set()
