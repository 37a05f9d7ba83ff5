"""What may be written in several ways, brought into the one way that the code reads: paths and lengths.

Done once, while a configuration is composed, so that the recorded `config.yaml` says which folder and which unit was
meant, whoever reads it and on whichever machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from pretrain.batch_size import RAMP_KEY
from pretrain.config.overrides import counted_unit, schema_fields, source_fields, takes_list
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.locate import expand_path
from pretrain.units import Duration, parse_count

PATHS = (
    "run.dir",
    "data.token_chunks",
    "data.prepared_dir",
    "tokenizer.path",
    "checkpoint.start_from",
    "probe.suite",
    "probe.task_paths",
    "probe.data_dir",
    "probe.plan",
    "probe.fast_plan",
    "probe.references",
)
"""Keys that hold a path or a list of them, besides `data.sources.NAME.paths`."""

DURATIONS = (
    "schedule.warmup",
    "schedule.decay",
    "checkpoint.every",
    "checkpoint.milestones",
    "track.console.every",
    "track.dynamics.every",
    "probe.milestones",
)
"""Keys that hold a duration, besides `train.batch_ramp`. `schedule.decay_length` needs its unit: it may be a share."""


def expand_paths(config: RunConfig) -> None:
    """Replaces `~` and environment variables in every path of a configuration that was just composed.

    Raises:
        ConfigError: variables that are not set; all of them at once.
    """
    problems: list[str] = []
    for key in PATHS:
        _replace(*_place(config, key), key, expand_path, problems)
    for name, source in config.data.sources.items():
        _replace(source, "paths", f"data.sources.{name}.paths", expand_path, problems)
    if problems:
        raise ConfigError(problems)


def count_lengths(config: RunConfig) -> None:
    """Replaces lengths by whole numbers where the type is `Steps` or `Tokens`, and gives durations their unit.

    Raises:
        ConfigError: what is not a number of steps or of tokens; all of them at once.
    """
    problems: list[str] = []
    for key, declared in schema_fields().items():
        _replace_count(*_place(config, key), key, declared, problems)
    for name, source in config.data.sources.items():
        for field, declared in source_fields().items():
            _replace_count(source, field, f"data.sources.{name}.{field}", declared, problems)
    for key in DURATIONS:
        _replace(*_place(config, key), key, _with_unit, problems)
    for stage in config.train.batch_ramp:
        stage.until = _with_unit(stage.until, key=RAMP_KEY)
    if problems:
        raise ConfigError(problems)


def _place(config: RunConfig, key: str) -> tuple[Any, str]:
    """The section that a key lies in, and its name there."""
    *sections, name = key.split(".")
    return reduce(getattr, sections, config), name


def _with_unit(text: str, *, key: str) -> str:
    """A number alone as steps; any other text is left as it is, since checkpoints know a run by it."""
    try:
        duration = Duration.parse(text, key=key)
    except ConfigError:
        return text  # `checks` judges it
    has_unit = any(unit in text.lower() for unit in ("step", "token"))
    return text if has_unit else f"{duration.count} steps"


def _replace_count(section: Any, name: str, key: str, declared: str, problems: list[str]) -> None:
    unit = counted_unit(declared)
    if unit is not None and getattr(section, name) is None and not declared.endswith(" | None"):
        problems.append(f"{key}=null: it needs a number of {unit}.")
    elif unit is not None:
        _replace(section, name, key, partial(parse_count, unit=unit), problems)


def _replace(section: Any, name: str, key: str, read: Callable[..., Any], problems: list[str]) -> None:
    """Replaces a field, or every entry of its list, by what `read(value, key=…)` makes of it; null stays null."""
    value = getattr(section, name)
    if isinstance(value, str) and takes_list(key):
        value = [value]  # of an interpolation, whose type nothing has checked
    try:
        if isinstance(value, list):
            setattr(section, name, [read(one, key=f"{key}[{place}]") for place, one in enumerate(value)])
        elif value is not None:
            setattr(section, name, read(value, key=key))
    except ConfigError as error:
        problems += error.problems
