"""Judges each override of a command line alone, before Hydra composes, so that all wrong ones are named at once.

Hydra stops at its first error and composing takes a quarter of a second; here the schema, the names of the group
files and one parse are enough. What is judged good may still fail in Hydra: see `pretrain.config.load`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config.data import SourceConfig
from pretrain.config.nearest import did_you_mean
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.units import parse_count

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_SOURCE_KEY = re.compile(r"^(?:data\.sources)\.(?P<name>[^.=]+)\.(?P<field>[^.=]+)$")
_FREE_KEY = re.compile(r"^\+{0,2}(engine\.deepspeed\.[^=~]+=)", re.DOTALL)
_SOURCE_OVERRIDE = re.compile(r"^\+{0,2}data\.sources\.(?P<name>[^.={]+)\.(?P<field>[^.=]+)=(?P<value>.*)$", re.DOTALL)


@functools.cache
def schema_fields() -> Mapping[str, str]:
    """Every key of the schema with the type it is declared as, sections included (`train` → `TrainSection`)."""
    found: dict[str, str] = {}

    def walk(section: Any, prefix: str) -> None:
        for field in dataclasses.fields(section):
            key = prefix + field.name
            found[key] = str(field.type)
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                walk(value, key + ".")

    walk(RunConfig(), "")
    return found


def group_options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Options of each configuration group, from the YAML files of `folders` (earlier folders first)."""
    options: dict[str, list[str]] = {}
    groups = schema_fields().keys() | {"experiment"}
    for folder in folders:
        for path in sorted(folder.glob("*/*.y*ml")):
            if path.parent.name in groups:
                options.setdefault(path.parent.name, []).append(path.stem)
    return options


def expand(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them, from what users may write.

    `data.sources.NAME.FIELD=VALUE` adds a source, because Hydra cannot create a typed entry of a dictionary by key. A
    misspelt name thus makes a source without paths, which `checks` refuses with the nearest right name. Keys below
    `engine.deepspeed` are free: they are added, or replace what is there. One value of a key that takes a list is a
    list of one.
    """
    expanded = []
    for text in map(_in_list, map(_add_or_replace, overrides)):
        match = _SOURCE_OVERRIDE.match(text)
        expanded.append("+data.sources={{{name}:{{{field}:{value}}}}}".format(**match.groupdict()) if match else text)
    return expanded


def _add_or_replace(text: str) -> str:
    return _FREE_KEY.sub(r"++\1", text)


def _in_list(text: str) -> str:
    """`data.sources.web.paths=/one/file` as `data.sources.web.paths=[/one/file]`."""
    key, _, value = text.partition("=")
    if not takes_list(key.lstrip("+")) or not _parses(text):
        return text
    override = parse(text)
    if override.is_delete() or override.is_sweep_override() or not _is_one(override.value()):
        return text
    return f"{key}=[{value}]"


def takes_list(key: str) -> bool:
    """Whether a key of the schema, or of a source, holds a list."""
    match = _SOURCE_KEY.match(key)
    declared = source_fields().get(match["field"], "") if match else schema_fields().get(key, "")
    return declared.startswith("list[")


def _is_one(value: Any) -> bool:
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        return False  # an interpolation, which may be a list
    return value is not None and not isinstance(value, list)


@functools.cache
def source_fields() -> Mapping[str, str]:
    """Every field of a source with the type it is declared as."""
    return {field.name: str(field.type) for field in dataclasses.fields(SourceConfig)}


def parse(text: str) -> Override:
    """One override, parsed by Hydra's grammar.

    Raises:
        ValueError: it does not follow the grammar; the message says how to write it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
        remedy = "Write group=option or key=value."
        if "=" in text:
            remedy = f"Write it with quotes: {quoted(text)}" if quoted(text) else _WITH_BRACKETS
        raise ValueError(f"{text}: not an override ({reason}). {remedy}") from None


_WITH_BRACKETS = "Close every bracket and quote, and quote the whole for the shell, as in 'track=[console,jsonl]'."


def quoted(text: str) -> str | None:
    """An override as it must be typed in a shell so that Hydra takes its value as text; None where that is unclear.

    In a list each entry is quoted that needs it.
    """
    key, _, value = text.partition("=")
    if value.startswith("[") and value.endswith("]"):
        entries = [entry.strip() for entry in value[1:-1].split(",")]
        value = f"[{','.join(entry if _parses(f'{key}={entry}') else _in_quotes(entry) for entry in entries)}]"
    elif not value.startswith(("[", "{", "'", '"')):
        value = _in_quotes(value)
    return shlex.quote(f"{key}={value}") if _parses(f"{key}={value}") else None


def _in_quotes(value: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.double).with_quotes()


def _parses(text: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def judge(overrides: Sequence[str], *, options: Mapping[str, Sequence[str]]) -> list[str]:
    """Problems of the overrides, each seen alone: grammar, unknown key, group or option, wrong type.

    Args:
        overrides: as written on the command line.
        options: the configuration groups and their options, from `group_options`.

    Returns:
        One sentence per bad override, in their order; empty when nothing is wrong.
    """
    problems = []
    for text in overrides:
        try:
            problem = _judge_one(parse(text), options)
        except ValueError as error:
            problem = str(error)
        if problem:
            problems.append(problem)
    return problems


def _judge_one(override: Override, options: Mapping[str, Sequence[str]]) -> str | None:
    key, text = override.key_or_group, override.input_line or ""
    if override.is_sweep_override():
        one = f"one value with commas is {quoted(text)}"
        if takes_list(key):
            one = f"a list is {shlex.quote(f'{key}=[' + text.partition('=')[2] + ']')}"
        return f"{text}: several values are a sweep. Add -m to run one job for each; {one}."
    if (
        key.split(".")[0] == "hydra"
        or key.startswith("engine.deepspeed.")
        or "/" in key
        or override.package is not None
    ):
        return None
    if override.is_delete():
        return _judge_deletion(key, text, options)
    if key in options:
        return _judge_option(key, override.value(), options)
    match = _SOURCE_KEY.match(key)
    if match:
        fields = source_fields()
        if match["field"] not in fields:
            return f"{text}: a source has no {match['field']}.{did_you_mean(match['field'], fields)}"
        return _judge_value(SourceConfig, match["field"], override.value(), text, fields[match["field"]])
    if key not in schema_fields() and not key.startswith("data.sources."):
        known = [*schema_fields(), *options]
        return f"{text}: there is no key or group {key}.{did_you_mean(key, known)}"
    if key.startswith("data.sources"):
        return None  # whole entries: Hydra judges them while it merges
    return _judge_value(RunConfig, key, override.value(), text, schema_fields()[key])


def _judge_deletion(key: str, text: str, options: Mapping[str, Sequence[str]]) -> str | None:
    if key in options or key.startswith("data.sources."):
        return None
    if key in schema_fields():
        return f"{text}: a key of the schema cannot be removed. Set it to null, or choose another option of its group."
    return f"{text}: there is no key or group {key}.{did_you_mean(key, [*schema_fields(), *options])}"


def _judge_option(group: str, value: Any, options: Mapping[str, Sequence[str]]) -> str | None:
    chosen = value if isinstance(value, list) else [value]
    unknown = [option for option in chosen if option is not None and str(option) not in options[group]]
    if isinstance(value, dict):
        return f"{group}={{…}}: choose one of {', '.join(options[group])}; set single keys with {group}.KEY=VALUE."
    if not unknown:
        return None
    hints = "".join(did_you_mean(str(option), options[group]) for option in unknown)
    known = ", ".join(options[group])
    return f"{group}={_plain(value)}: {group} has no option {_plain(unknown)}.{hints} Options: {known}."


def _judge_value(root: type, key: str, value: Any, text: str, declared: str) -> str | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, str) and "${" in value:
        return None  # an interpolation: known only once everything is composed
    counted = counted_unit(declared)
    if counted and (problem := _judge_count(value, declared, text)):
        return problem
    is_value = counted or declared in ("bool", "int", "float", "str") or "|" in declared or "[" in declared
    if not is_value:
        return f"{text}: {key} is a section; set its keys, as {key}.KEY=VALUE."
    if declared.startswith("list[") and _is_one(value):
        value = [value]
    strict_bool = declared == "bool" and not isinstance(value, bool)
    try:
        OmegaConf.update(OmegaConf.structured(root), key, value, merge=True)
    except OmegaConfBaseException:
        strict_bool = True
    if strict_bool:
        shown = "true or false" if declared == "bool" else declared.replace(" | None", " or null")
        return f"{text}: {key} takes {shown}, not {_plain(value)}."
    return None


def counted_unit(declared: str) -> str | None:
    """The unit of a field that may be written as a length, `steps` or `tokens`; None for all other types."""
    found = re.fullmatch(r"(?:list\[)?(Steps|Tokens)\]?(?: \| None)?", declared)
    return found[1].lower() if found else None


def _judge_count(value: Any, declared: str, text: str) -> str | None:
    if value is None and declared.endswith(" | None"):
        return None
    unit = str(counted_unit(declared))
    listed = value if isinstance(value, list) and declared.startswith("list[") else [value]
    try:
        for one in listed:
            parse_count(one, unit=unit, key=text.partition("=")[0].lstrip("+"))
    except ConfigError as error:
        return error.problems[0]
    return None


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return "null" if value is None else str(value)
