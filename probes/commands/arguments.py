"""`key=value` arguments of the prober's commands, read as on the training command line.

For commands with a few keys of their own; whole configurations are composed by `pretrain.config.load`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pretrain.config.nearest import did_you_mean
from pretrain.config.probe import LIMIT, is_limit
from pretrain.errors import ConfigError
from pretrain.locate import expand_path


def parse_keys(words: Sequence[str], allowed: Mapping[str, str]) -> dict[str, Any]:
    """Values by key.

    Args:
        words: `key=value`, values as in YAML: `limit=20`, `add_bos=true`, `task_paths=[a,b]`.
        allowed: keys with the kind of their value: `text`, `path`, `list of paths` (or one), `whole number` (≥ 1),
            `count` (≥ 0), `limit` (see `pretrain.config.probe.LIMIT`) or `flag`. In paths `~` and environment
            variables are replaced.

    Raises:
        ConfigError: all words that are no such argument.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    known = ", ".join(f"{key}=" for key in allowed)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in allowed:
            problems.append(f"{word!r} is not an argument.{did_you_mean(key, allowed)} Known: {known}.")
            continue
        if key in values:
            problems.append(f"{key}= is given twice. Keep one of the two.")
            continue
        value = text if allowed[key] in ("text", "path") else _value(text)
        if allowed[key] == "list of paths" and isinstance(value, str):
            value = [value]
        if not _fits(value, allowed[key]):
            problems.append(f"{key}={text} is not a {allowed[key]}. {_EXAMPLES[allowed[key]]}")
            continue
        try:
            values[key] = _expanded(value, key=key) if allowed[key] in ("path", "list of paths") else value
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return values


_EXAMPLES = {
    "text": "Give a value after the =.",
    "whole number": "Give a number of at least 1.",
    "count": "Give a whole number of at least 0.",
    "limit": f"Give {LIMIT}.",
    "flag": "Give true or false.",
    "path": "Give a path after the =.",
    "list of paths": "Write one path, or [a,b].",
}


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _expanded(value: str | list[str], *, key: str) -> str | list[str]:
    return [expand_path(one, key=key) for one in value] if isinstance(value, list) else expand_path(value, key=key)


def _fits(value: Any, kind: str) -> bool:
    if kind in ("text", "path"):
        return bool(value)
    if kind == "whole number":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind == "count":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind == "limit":
        return is_limit(value)
    if kind == "flag":
        return isinstance(value, bool)
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
