"""Data sets of lm-eval's own tasks from plain files, for machines without a hub.

Layout: `<data_dir>/<dataset_path>/<dataset_name or "default">/<split>.{parquet,jsonl,jsonl.gz}`, where the names are
those of the task's definition and fields are those of the original data set. Reading leaves no cache behind.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, cast

from pretrain.errors import ProbeError

FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of a task's `dataset_path` with which `datasets` reads files that the task brings."""
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
DEFAULT_NAME = "default"
"""Folder of a data set whose task names no configuration of it."""


def dataset_folder(data_dir: str | Path, dataset_path: str, dataset_name: str | None) -> Path:
    """Where a data set lies, if it lies below `data_dir`."""
    return Path(data_dir) / PurePosixPath(dataset_path) / (dataset_name or DEFAULT_NAME)


def find_splits(data_dir: str | Path, dataset_path: str | None, dataset_name: str | None) -> dict[str, Path]:
    """Files of a data set by split; empty if it is not there.

    Args:
        data_dir: folder of data sets.
        dataset_path: of the task's definition, such as `cais/mmlu`.
        dataset_name: of the task's definition, such as `abstract_algebra`.

    Raises:
        ProbeError: the data set's folder may not be listed.
    """
    if not dataset_path or PurePosixPath(dataset_path).is_absolute() or ".." in PurePosixPath(dataset_path).parts:
        return {}
    folder = dataset_folder(data_dir, dataset_path, dataset_name)
    found: dict[str, Path] = {}
    if folder.is_dir():
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise ProbeError(
                f"The data in {folder} cannot be listed: {error.strerror}. Give this user access to the folder."
            ) from None
        for suffix in reversed(SUFFIXES):
            found.update({path.name[: -len(suffix)]: path for path in paths if path.name.lower().endswith(suffix)})
    return found


class MissingSplitError(ProbeError):
    """A split that a data set's folder has not.

    Attributes:
        split: its name.
        folder: of the data set.
    """

    def __init__(self, message: str, split: str, folder: Path) -> None:
        super().__init__(message)
        self.split = split
        self.folder = folder


def missing_split(task: str, split: str, files: dict[str, Path]) -> MissingSplitError:
    """What to say of a split that is not among the files of a data set."""
    folder = next(iter(files.values())).parent
    return MissingSplitError(
        f"Task {task} needs split {split!r}, but {folder} has {', '.join(files)} only.", split, folder
    )


def read_splits(task: str, files: dict[str, Path]) -> Any:
    """All splits of a data set as `datasets.DatasetDict`; asking it for another one is a MissingSplitError.

    Args:
        task: name of the task that asks.
        files: of `find_splits`.

    Raises:
        ProbeError: a file is damaged or empty.
    """
    import datasets

    class Splits(datasets.DatasetDict):
        def __missing__(self, split: str) -> Any:
            raise missing_split(task, split, files)

    return Splits({split: read_split(path) for split, path in files.items()})


def read_split(path: Path) -> Any:
    """A split as `datasets.Dataset`, in memory; features stored in a Parquet file by `datasets` are kept.

    Raises:
        ProbeError: the file is damaged or empty.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            found = datasets.Dataset(datasets.table.InMemoryTable(pyarrow.parquet.read_table(path)))
        else:
            rows = _read_lines(path)
            columns = dict.fromkeys(key for row in rows for key in row)
            found = datasets.Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
    except (OSError, EOFError, ValueError, AttributeError, TypeError, pyarrow.ArrowException) as error:
        raise ProbeError(f"The data in {path} cannot be read: {type(error).__name__}: {error}. Get it anew.") from error
    if not len(found):
        raise ProbeError(f"The data in {path} have no items. Get them anew.")
    return found


def open_text(path: Path) -> TextIO:
    """A file of text, gzip or plain; a byte order mark is passed over."""
    if path.suffix.lower() == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
    return path.open(encoding="utf-8-sig")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
        ProbeError: a line is no JSON object; names it.
    """
    rows = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise ProbeError(f"{path}, line {number}, is not JSON: {error}. Correct the line.") from error
            if row is not None and not isinstance(row, dict):
                raise ProbeError(f"{path}, line {number}, is not a JSON object with an item's fields. Correct it.")
            if row is not None:
                rows.append(row)
    return rows
