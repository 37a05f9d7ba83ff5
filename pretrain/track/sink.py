"""What the record and every view of a run implement; `tracker.py` feeds them.

`metrics.jsonl` is written first and is the record; a view that fails is switched off with one warning and
an event, and never stops training. A record that fails does: `TrackError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pretrain.errors import FinelineError


class TrackError(FinelineError):
    """The record of the run (`metrics.jsonl`, `events.jsonl`) cannot be written or is damaged."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a sink may want to know of the run before its first row.

    Attributes:
        directory: the run directory.
        name: the run's name.
        config: the resolved configuration, as plain JSON values.
        config_hash: hash of the resolved configuration.
        total_steps: steps the run will do.
        resume_step: step the run continues from; -1 for a new run. Rows after it are dropped from the record.
        domains: probe domains, then validation domains, in the order to show them.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    config_hash: str
    total_steps: int
    resume_step: int
    domains: Sequence[str]


class Sink(Protocol):
    """A view of the metrics. Only rank 0 has sinks."""

    def open(self, info: RunInfo) -> None:
        """Called once before the first row."""
        ...

    def log(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """One row of metrics; may be called more than once for a step, with other names."""
        ...

    def event(self, kind: str, fields: Mapping[str, Any], *, step: int) -> None:
        """Something that happened: a save, a resume, a probe that failed."""
        ...

    def close(self) -> None:
        """Called once, also after an error."""
        ...
