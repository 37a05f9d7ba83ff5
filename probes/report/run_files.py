"""Reads a run directory for the report: configuration, metrics, probes, events.

Tolerant of a run in progress: missing probes or events, torn last lines, unknown columns, nulls. Only a
folder without `config.yaml` or `metrics.jsonl` is refused. Nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pretrain.config.load import from_plain
from pretrain.errors import ConfigError, FinelineError
from pretrain.track import names
from probes.journal import JOURNAL_FILE
from probes.report.curves import Curve, Point, curves_of

REQUIRED_FILES = ("config.yaml", "metrics.jsonl")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class ReportError(FinelineError):
    """The folder is not a run directory, or a report cannot be made of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """What a run left behind.

    Attributes:
        directory: the run directory.
        config: the resolved configuration.
        config_text: the same, as it is in the file.
        rows: rows of `metrics.jsonl`, by step.
        curves: probe curves, in the order of first appearance.
        probe_seconds: wall time of scoring per step.
        events: rows of `watch.jsonl`, if something was scored beside the run, then of `events.jsonl`.
    """

    directory: Path
    config: dict[str, Any]
    config_text: str
    rows: Sequence[dict[str, Any]]
    curves: Sequence[Curve]
    probe_seconds: dict[int, float] = field(default_factory=dict)
    events: Sequence[dict[str, Any]] = ()

    @property
    def name(self) -> str:
        """The run's name: from the configuration, else the folder's."""
        return str(_section(self.config, "run").get("name") or self.directory.resolve().name)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one early step, from the first row after step 0; 1 if there is none."""
        return next((row["tokens"] // row["step"] for row in self.rows if row["step"] > 0 and row["tokens"] > 0), 1)

    @property
    def total_steps(self) -> int | None:
        """Steps the run was to do; None if the configuration does not say."""
        train = _section(self.config, "train")
        if isinstance(train.get("steps"), int):
            return int(train["steps"])
        if not isinstance(train.get("tokens"), int):
            return None
        if train.get("batch_ramp"):
            try:
                return from_plain({"train": train}).total_steps
            except ConfigError:
                return None
        return -(-int(train["tokens"]) // self.tokens_per_step) if self.tokens_per_step > 1 else None

    @property
    def total_tokens(self) -> int | None:
        """Tokens the run was to see; None if the configuration does not say."""
        train = _section(self.config, "train")
        if train.get("batch_ramp"):
            try:
                return from_plain({"train": train}).total_tokens
            except ConfigError:
                return None
        if isinstance(train.get("tokens"), int) and train.get("steps") is None:
            return int(train["tokens"])
        factors: list[Any] = [train.get(key) for key in ("steps", "global_batch_size", "sequence_length")]
        return math.prod(factors) if all(isinstance(factor, int) for factor in factors) else None

    @property
    def parameters(self) -> int | None:
        """Number of parameters, if an event tells it."""
        return next((int(value) for value in self._told("parameters", int | float)), None)

    @property
    def chance(self) -> dict[str, float]:
        """Score of guessing per task, if an event tells it."""
        return next((dict(value) for value in self._told("chance", dict)), {})

    def metric(self, name: str) -> list[Point]:
        """All finite values of one metric."""
        return [
            Point(step=row["step"], tokens=row["tokens"], value=float(row[name]), stderr=None)
            for row in self.rows
            if _finite(row.get(name))
        ]

    def validation(self, quantity: str) -> dict[str, list[Point]]:
        """Values of `loss` or `bits_per_byte` per validation domain."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        parsed = [(name, names.parse_validation_name(name)) for name in found]
        return {
            domain_and_quantity[0]: self.metric(name)
            for name, domain_and_quantity in parsed
            if domain_and_quantity is not None and domain_and_quantity[1] == quantity and self.metric(name)
        }

    def event_seconds(self, kind: str) -> float:
        """Sum of `seconds` over events of a kind; of those at one step, the last counts."""
        by_step = {
            event.get("step"): float(event["seconds"])
            for event in self.events
            if event["kind"] == kind and _finite(event.get("seconds"))
        }
        return sum(by_step.values())

    def _told(self, key: str, kind: Any) -> Iterator[Any]:
        """Values of a field over the events, the latest first."""
        return (event[key] for event in reversed(self.events) if isinstance(event.get(key), kind))


def read_run(directory: Path) -> RunFiles:
    """Reads what a run has written so far.

    Raises:
        ReportError: the folder lacks a file every run has, or that file cannot be read.
    """
    for name in REQUIRED_FILES:
        if not (directory / name).is_file():
            raise ReportError(
                f"{directory} is not a run directory: {name} is missing. "
                f"Give the folder of one run, for example runs/demo; it holds {' and '.join(REQUIRED_FILES)}."
            )
    config, text = read_config(directory)
    by_step: dict[int, dict[str, Any]] = {}
    for row in _rows(directory / "metrics.jsonl"):
        if isinstance(row.get("step"), int) and isinstance(row.get("tokens"), int):
            by_step[row["step"]] = by_step.get(row["step"], {}) | row
    measurements = list(_rows(directory / "probes.jsonl"))
    return RunFiles(
        directory=directory,
        config=config,
        config_text=text,
        rows=[by_step[step] for step in sorted(by_step)],
        curves=curves_of(measurements),
        probe_seconds={
            row["step"]: float(row["seconds"])
            for row in measurements
            if isinstance(row.get("step"), int) and _finite(row.get("seconds"))
        },
        events=read_events(directory),
    )


def read_config(directory: Path) -> tuple[dict[str, Any], str]:
    """The resolved configuration, plain and as it is in the file.

    Raises:
        ReportError: the file is missing or is not YAML.
    """
    path = directory / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        config = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is not YAML: {error}") from error
    return config if isinstance(config, dict) else {}, text


def read_events(directory: Path) -> list[dict[str, Any]]:
    """What happened: rows of `watch.jsonl`, whose plan tells chance levels where training has none, then the run's."""
    return [
        event
        for name in (JOURNAL_FILE, "events.jsonl")
        for event in _rows(directory / name)
        if isinstance(event.get("kind"), str)
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file; lines that are none (a torn last line) are passed over."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}
