"""The record: `metrics.jsonl` with one row per step, `events.jsonl` with one row per happening.

A row is one write of one whole line, so a killed process leaves at most a torn last line, which the next
start removes. Values logged for the step of the last row are merged into that row in place. NaN and
infinity are stored as null: the files stay valid JSON for every reader.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.durable import replace_file
from pretrain.track.sink import RunInfo, TrackError

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"


class JsonlSink:
    """Writes the record of a run, and puts it straight after a crash."""

    def __init__(self) -> None:
        self._metrics: _LineFile | None = None
        self._events: _LineFile | None = None
        self._row: dict[str, Any] = {}

    def open(self, info: RunInfo) -> None:
        """Opens both files; drops metric rows after the step the run resumes from.

        Events are never dropped but for a torn last line: what happened before a crash did happen.

        Raises:
            TrackError: the files cannot be opened, or a line other than the last is damaged.
        """
        metrics, events = info.directory / METRICS_FILE, info.directory / EVENTS_FILE
        try:
            info.directory.mkdir(parents=True, exist_ok=True)
            kept = _truncate(metrics, last_step=info.resume_step)
            _truncate(events, last_step=None)
            self._metrics, self._events = _LineFile(metrics), _LineFile(events)
        except OSError as error:
            raise TrackError(f"Cannot open the record of the run in {info.directory}: {error}.") from error
        self._row = json.loads(kept[-1]) if kept else {}
        self._metrics.last_line_bytes = len(kept[-1]) if kept else 0

    def log(self, values: Mapping[str, float], *, step: int, tokens: int) -> None:
        """Writes the row of a step, or merges the values into it if it is the last row.

        Raises:
            TrackError: the disk does not take the row.
        """
        assert self._metrics is not None, "JsonlSink.log before open"
        last_step = self._row.get("step", -1)
        assert step >= last_step, f"metrics.jsonl holds step {last_step} already; a row of step {step} is out of order"
        merge = step == last_step
        self._row = (self._row if merge else {}) | {"step": step, "tokens": tokens, **_plain(values)}
        self._metrics.write(_line(self._row), replace_last=merge)

    def event(self, kind: str, fields: Mapping[str, Any], *, step: int) -> None:
        """Appends an event and makes both files durable.

        Raises:
            TrackError: the disk does not take it.
        """
        assert self._events is not None, "JsonlSink.event before open"
        row = {"time": round(time.time(), 3), "step": step, "kind": kind, **_plain(fields)}
        self._events.write(_line(row))
        self.sync()

    def sync(self) -> None:
        """Returns once all rows are on the disk, so that they survive a power failure too."""
        for file in (self._metrics, self._events):
            if file is not None:
                file.sync()

    def close(self) -> None:
        """Makes both files durable and closes them; a second call does nothing."""
        for file in (self._metrics, self._events):
            if file is not None:
                file.close()
        self._metrics = self._events = None


class _LineFile:
    """Whole lines at the end of one file, the last of which can be replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = os.fstat(self._descriptor).st_size
        self.last_line_bytes = 0

    def write(self, line: bytes, *, replace_last: bool = False) -> None:
        start = self._end - (self.last_line_bytes if replace_last else 0)
        try:
            written = os.pwrite(self._descriptor, line, start)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written")
            if start + len(line) < self._end:
                os.ftruncate(self._descriptor, start + len(line))
        except OSError as error:
            raise self._explained(error) from error
        self._end, self.last_line_bytes = start + len(line), len(line)

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _explained(self, error: OSError) -> TrackError:
        return TrackError(
            f"Cannot write {self._path}: {error}. This file is the record of the run, so training stops rather than "
            f"go on unrecorded. Make room or fix the disk, then start the same command: it resumes from the last save."
        )


def _truncate(path: Path, *, last_step: int | None) -> list[bytes]:
    """Drops a torn last line and rows after `last_step`, durably; returns the lines kept, newline included."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            if number == len(lines):
                break
            raise TrackError(
                f"{path}, line {number} is not a JSON object with a step. Only a last line can be torn by a crash; "
                f"repair or remove that line by hand, or choose another run.name."
            )
        if last_step is None or row["step"] <= last_step:
            kept.append(line)
    if len(kept) != len(lines):
        replace_file(path, b"".join(kept))
    return kept


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line; None for a torn or damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n").encode()


def _plain(values: Any) -> Any:
    """The values with NaN and infinity as None, at any depth; NumPy and torch scalars as Python numbers."""
    if isinstance(values, Mapping):
        return {str(name): _plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if hasattr(values, "item") and not isinstance(values, str | bytes):
        values = values.item()
    return None if isinstance(values, float) and not math.isfinite(values) else values
