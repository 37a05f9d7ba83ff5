"""A folder given as a source: what `datasets.Dataset.save_to_disk` wrote, or a snapshot of a hub data set.

A folder stands for its training text. Where it is not plain which files those are, it is refused with what it holds.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pretrain.data.listing import files_below, is_folder
from pretrain.errors import DataError

_LINES = (".jsonl", ".ndjson", ".txt")
_ENDINGS = (
    ".parquet",
    ".arrow",
    ".json.gz",
    ".json.zst",
    *(e + packed for e in _LINES for packed in ("", ".gz", ".zst")),
)
_UNREAD = tuple(
    e + packed for e in (*_LINES, ".parquet", ".arrow") for packed in (".bz2", ".xz", ".lz4", ".zip", ".7z")
)
_HIDDEN = (".", "_")
_SPLIT = re.compile(r"(?:^|[-_./])(train|training|test|testing|validation|valid|val|dev|eval)(?=[-_./0-9]|$)")


def files_of_folder(folder: str, *, key: str) -> list[str]:
    """Files of a folder that hold its training text, in order.

    - `Dataset.save_to_disk`: its Arrow files, in the order of `state.json`.
    - `DatasetDict.save_to_disk`: those of its split `train`.
    - otherwise (a hub snapshot, or any folder): all files below it of a known ending, sorted by path; `.json` files are
      taken for metadata, and names that begin with `.` or `_` are left out. Where names tell splits apart as `datasets`
      does, those of `train`.

    Raises:
        DataError: no such files, several formats side by side, splits without `train`, or a saved data set with an
            index of its rows or without its files.
    """
    root = Path(folder)
    if os.path.isfile(root / "dataset_dict.json"):
        splits = _read(root / "dataset_dict.json", key=key).get("splits", [])
        if "train" not in splits:
            raise DataError(
                f"{key} lists {folder!r}, a saved DatasetDict without a split 'train'. Give the folder of one of its "
                f"splits: {', '.join(f'{folder}/{split}' for split in splits) or 'it has none'}."
            )
        root = root / "train"
    if os.path.isfile(root / "state.json"):
        return _saved(root, key=key)
    return _snapshot(root, key=key)


def _saved(root: Path, *, key: str) -> list[str]:
    state = _read(root / "state.json", key=key)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{key} lists {str(root)!r}, a data set saved with an index of its rows, which would be read in another "
            "order. Write it again: datasets.load_from_disk(folder).flatten_indices().save_to_disk(new_folder)."
        )
    files = [root / entry["filename"] for entry in state.get("_data_files", [])]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        what = f"its {', '.join(missing[:3])} is missing" if missing else "its state.json lists no files"
        raise DataError(f"{key} lists {str(root)!r}, a saved data set, but {what}. Copy or save it again.")
    return [str(path) for path in files]


def _snapshot(root: Path, *, key: str) -> list[str]:
    by_ending: dict[str, list[Path]] = {}
    for path in sorted(map(Path, files_below(str(root), key=key, hidden=_HIDDEN))):
        name = path.name.lower()
        ending = next((e for e in _ENDINGS if name.endswith(e)), None)
        if name.endswith(_UNREAD):
            raise DataError(
                f"{key} lists {str(root)!r}, but {path} is packed in a way that is not read here, so its text would be "
                "left out. Pack it as .gz or .zst, or list files or a glob."
            )
        if ending and not is_folder(str(path), key=key):
            by_ending.setdefault(ending, []).append(path)
    if not by_ending:
        raise DataError(
            f"{key} lists {str(root)!r}, a folder without files of a known ending ({', '.join(_ENDINGS)}). List files "
            "or a glob."
        )
    if len(by_ending) > 1:
        held = "; ".join(f"{len(files)} {ending} files: '{root}/**/*{ending}'" for ending, files in by_ending.items())
        raise DataError(f"{key} lists {str(root)!r}, a folder of several formats. Give one as a glob: {held}.")
    ((ending, files),) = by_ending.items()
    splits = {path: match[1] for path in files if (match := _SPLIT.search(str(path.relative_to(root))))}
    if not splits:
        return [str(path) for path in files]
    training = [str(path) for path in files if splits.get(path, "").startswith("train")]
    if not training or len(splits) < len(files):
        named = ", ".join(sorted(set(splits.values())))
        raise DataError(
            f"{key} lists {str(root)!r}, a folder of which {len(splits)} of {len(files)} {ending} files are named by a "
            f"split ({named}): which are meant is unclear. Give a glob, for example '{root}/**/train*{ending}'."
        )
    return training


def _read(path: Path, *, key: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{key}: {path} cannot be read: {error}. Copy or save the data set again.") from None
    return content if isinstance(content, dict) else {}
