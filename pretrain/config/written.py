"""What may be written in several ways, brought into the one way that the code reads: paths with `~` and variables.

Done once, while a configuration is composed, so that the recorded `config.yaml` says which folder was meant, whoever
reads it and on whichever machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretrain.config.overrides import takes_list
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.locate import expand_path

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


def expand_paths(config: RunConfig) -> None:
    """Replaces `~` and environment variables in every path of a configuration that was just composed.

    Raises:
        ConfigError: variables that are not set; all of them at once.
    """
    problems: list[str] = []
    for key in PATHS:
        section, name = key.split(".")
        _replace(getattr(config, section), name, key, expand_path, problems)
    for name, source in config.data.sources.items():
        _replace(source, "paths", f"data.sources.{name}.paths", expand_path, problems)
    if problems:
        raise ConfigError(problems)


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
