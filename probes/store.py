"""The record of measurements: `probes.jsonl`, append-only whole lines, and per-request answers in Parquet.

Metrics that could not be computed are in `missing.jsonl`, with the reason; every row of `probes.jsonl` has a number.
A measurement is named by (step, suite, domain, task, num_fewshot, metric, plan_hash): writing it again replaces it, so
a step that is scored twice after a crash is recorded once. Only rank 0 writes. Training and a scorer beside it may
write at the same time: each change is made under a lock, on what the other has written meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pretrain.durable import replace_file, replacing
from pretrain.errors import ProbeError
from pretrain.locks import exclusive
from probes.metrics import CONTINUOUS, is_stderr
from probes.record import Measurement, MissingMeasurement

if TYPE_CHECKING:
    from probes.plan import Plan
    from probes.score import Answers

PROBES_FILE = "probes.jsonl"
MISSING_FILE = "missing.jsonl"
ITEMS_FOLDER = "items"
LOCK_FILE = ".probes.lock"

Row = TypeVar("Row", Measurement, MissingMeasurement)
_ITEMS_NAME = re.compile(r"step_(\d+)\.parquet$")

Key = tuple[int, str, str, str, int, str, str]


class ProbeStore:
    """Measurements of one run.

    Args:
        directory: the run directory, which exists.

    Raises:
        ProbeError: `probes.jsonl` is there and damaged before its last line.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / PROBES_FILE
        self._missing_path = directory / MISSING_FILE
        self._items = directory / ITEMS_FOLDER
        self._lock = directory / LOCK_FILE
        self._seen: tuple[int, ...] | None = None
        self._rows: dict[Key, Measurement] = {}
        self.refresh()

    @property
    def measurements(self) -> list[Measurement]:
        """Everything recorded, in the order of the file as last read."""
        return list(self._rows.values())

    @property
    def missing(self) -> list[MissingMeasurement]:
        """Metrics that could not be computed, as the file has them now."""
        return load_missing(self._missing_path)

    def refresh(self) -> None:
        """Takes in what others have written since the file was last read.

        Raises:
            ProbeError: the file is damaged before its last line.
        """
        found = _state_of(self.path)
        if found != self._seen or found is None:
            self._rows = {_key(row): row for row in load_measurements(self.path)}
            self._seen = found

    def truncate_after(self, step: int) -> None:
        """Forgets what a resumed run is going to measure again: rows and items of later steps, and a torn line.

        Args:
            step: the step the run continues from; its own measurements stay.

        Raises:
            ProbeError: the files cannot be written.
        """
        with _explained(self.path), exclusive(self._lock):
            self.refresh()
            self._rows = {key: row for key, row in self._rows.items() if row.step <= step}
            if self.path.exists():
                self._rewrite()
            self._write_missing([row for row in self.missing if row.step <= step])
            for path in self._items.glob("**/step_*.parquet"):
                match = _ITEMS_NAME.fullmatch(path.name)
                if match and int(match[1]) > step:
                    path.unlink()

    def append(self, measurements: Sequence[Measurement], missing: Sequence[MissingMeasurement] = ()) -> None:
        """Adds measurements, on disk when this returns; those recorded before are replaced.

        Args:
            measurements: of one step.
            missing: metrics that could not be computed at it; those recorded before are forgotten.

        Raises:
            ProbeError: the file cannot be written.
        """
        with _explained(self.path), exclusive(self._lock):
            self.refresh()
            # Values first: what is missing counts for the completeness of a step, whose values must not be lost by it.
            self._append_values(measurements)
            rows: list[Measurement | MissingMeasurement] = [*measurements, *missing]
            places = {(row.step, row.suite, row.plan_hash) for row in rows}
            others = [row for row in self.missing if (row.step, row.suite, row.plan_hash) not in places]
            self._write_missing([*others, *missing])

    def complete_steps(self, plan: Plan, *, written: bool = False) -> set[int]:
        """Steps that need not be scored again: each task that the plan puts to the model has a row under its hash.

        A metric that could not be computed is such a row: computed again, it would be missing again.
        Rows of groups and means of domains do not count: whether there are any depends on the metrics tasks share.

        Args:
            plan: the compiled suite.
            written: each task whose answers the model is to write must have a metric of these answers, too.
        """
        asked = [plan.tasks[index] for index in np.unique(plan.table.task_R)]
        wanted = {(task.name, task.domain, task.num_fewshot, False) for task in asked}
        if written:
            pairs = zip(plan.tasks, plan.stored.tasks, strict=True)
            wanted |= {(task.name, task.domain, task.num_fewshot, True) for task, own in pairs if own.prompts}
        found: dict[int, set[tuple[str, str, int, bool]]] = {}
        rows: list[Measurement | MissingMeasurement] = [*self._rows.values(), *self.missing]
        for row in rows:
            if row.plan_hash == plan.plan_hash and row.suite == plan.suite:
                kinds = {False, not (row.metric in CONTINUOUS or is_stderr(row.metric))}
                found.setdefault(row.step, set()).update(
                    (row.task, row.domain, row.num_fewshot, kind) for kind in kinds
                )
        return {step for step, named in found.items() if named >= wanted}

    def write_items(self, plan: Plan, answers: Answers, *, step: int) -> Path:
        """Writes the answers to every request of a step, to `items/<plan_hash>/step_<step>.parquet`.

        Columns: task (`task@5shot` where the plan has it at several numbers of examples), and those of
        `probes.paired.COLUMNS`; log-likelihoods are in nats. The plan hash, the suite
        and the step are in the file's metadata.

        Raises:
            ProbeError: the file cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = plan.table
        names = pa.array(plan.names)
        columns = {
            "task": pa.DictionaryArray.from_arrays(pa.array(table.task_R), names),
            "item": table.item_R,
            "choice": table.choice_R,
            "is_choice": table.is_choice_R,
            "is_gold": table.is_gold_R,
            "is_whole": table.is_whole_R,
            "log_likelihood": answers.log_likelihood_R,
            "is_greedy": answers.is_greedy_R,
            "num_tokens": table.num_tokens_R.astype(np.int32),
            "num_chars": table.num_chars_R,
            "num_bytes": table.num_bytes_R,
        }
        metadata = {"plan_hash": plan.plan_hash, "suite": plan.suite, "step": str(step)}
        path = self._items / plan.plan_hash / items_name(step)
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary, compression="zstd")
        return path

    def _append_values(self, measurements: Sequence[Measurement]) -> None:
        self._seen = None  # until it is on disk
        replaces = any(_key(row) in self._rows for row in measurements)
        for row in measurements:
            self._rows.pop(_key(row), None)
            self._rows[_key(row)] = row
        if replaces or _is_torn(self.path):
            self._rewrite()
            return
        with self.path.open("ab") as file:
            file.write(_lines(measurements))
            file.flush()
            os.fsync(file.fileno())
        self._seen = _state_of(self.path)

    def _rewrite(self) -> None:
        replace_file(self.path, _lines(self._rows.values()))
        self._seen = _state_of(self.path)

    def _write_missing(self, rows: Sequence[MissingMeasurement]) -> None:
        if rows != self.missing:
            replace_file(self._missing_path, _lines(rows))


def load_missing(path: Path) -> list[MissingMeasurement]:
    """Reads `missing.jsonl`, which is always whole; a missing file holds none.

    Raises:
        ProbeError: unreadable, or a line that is none of its rows; names the line.
    """
    lines = _read(path).splitlines()
    return [_parse(line, path, number, MissingMeasurement) for number, line in enumerate(lines, start=1)]


def items_name(step: int) -> str:
    """File name of the answers at a step."""
    return f"step_{step:08d}.parquet"


def load_measurements(path: Path) -> list[Measurement]:
    """Reads `probes.jsonl`; of a measurement written twice the later one. A missing file holds none.

    A last line without its end was being written when the run was killed: it is left out, and with it the
    other rows of the same step and plan, which were written together.

    Raises:
        ProbeError: unreadable, or a whole line that is not a measurement; names the line.
    """
    *lines, torn = _read(path).split(b"\n")
    rows: dict[Key, Measurement] = {}
    for number, line in enumerate(lines, start=1):
        row = _parse(line, path, number, Measurement)
        rows.pop(_key(row), None)
        rows[_key(row)] = row
    found = list(rows.values())
    if torn and found and _may_be_of(torn, found[-1].step):
        last = found[-1].step, found[-1].plan_hash
        found = [row for row in found if (row.step, row.plan_hash) != last]
    return found


def _may_be_of(torn: bytes, step: int) -> bool:
    """Whether a line cut short was written with the rows of a step; so unless it names another one whole."""
    match = re.search(rb'"step": (\d+),', torn)
    return match is None or int(match[1]) == step


def _state_of(path: Path) -> tuple[int, ...] | None:
    """What tells that a file has changed; None for one that cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end: whoever wrote it was killed, since nobody else writes under the lock."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error


def _parse(line: bytes, path: Path, number: int, kind: type[Row]) -> Row:
    try:
        values: dict[str, Any] = json.loads(line)
        return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
    except (ValueError, KeyError, TypeError) as error:
        raise ProbeError(
            f"{path}, line {number}, is not a measurement ({type(error).__name__}: {error}). Remove the line."
        ) from error


def _key(row: Measurement) -> Key:
    return (row.step, row.suite, row.domain, row.task, row.num_fewshot, row.metric, row.plan_hash)


def _lines(rows: Iterable[Measurement | MissingMeasurement]) -> bytes:
    """Strict JSON: a NaN would make the file unreadable for other programs."""
    return "".join(json.dumps(row.to_json(), allow_nan=False) + "\n" for row in rows).encode()


@contextlib.contextmanager
def _explained(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise ProbeError(f"{path} cannot be written: {error}. Check the disk's space and permissions.") from error
