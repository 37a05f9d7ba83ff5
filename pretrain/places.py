"""What lies at a path: recognises the kinds of folders that this project writes, for messages and before replacing one.

A command that was given the wrong folder says what the folder is. Nothing advises to delete a folder, and nothing
replaces one, unless everything in it is known to be ours. Only names and the first lines of JSON files are looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

from pretrain.locate import CHECKPOINTS, CONFIG_NAME, EXPORTS

_NAMED = 3

_RUN_FILES = {
    *(CONFIG_NAME, "order.json", "tokenizer.model", "metrics.jsonl", "probes.jsonl", "events.jsonl", "watch.jsonl"),
    *("missing.jsonl", "report.html", "deepspeed.json", CHECKPOINTS, EXPORTS, "items", "plans", "probes.partial"),
    *("wandb", "tensorboard"),
}
_LOG_ENDINGS = (".log", ".out", ".err")


def what_is(path: Path) -> str:
    """What lies at a path, to follow the path in a sentence: `is a run directory`, `does not exist`, …."""
    try:
        if not path.exists():
            return "does not exist"
        if not path.is_dir():
            return "is a file, not a folder"
        for is_of_kind, text in _KINDS:
            if is_of_kind(path):
                return text + (_prepared_of(path) if is_of_kind is _is_run else "")
        names = _names(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not names:
        return "is an empty folder"
    return f"is a folder that this program did not write; it holds {listed(names)}"


def not_of_a_run(directory: Path) -> list[str]:
    """Names in a folder that neither a run nor what starts one leaves there: logs and hidden files are left out."""
    if not directory.is_dir():
        return []
    return [
        name
        for name in _names(directory)
        if name not in _RUN_FILES and not name.startswith(".") and not name.endswith(_LOG_ENDINGS)
    ]


def names_besides(folder: Path, ours: Collection[str]) -> list[str]:
    """Names in a folder that are not among ours, hidden ones too; none if there is no such folder."""
    return [name for name in _names(folder) if name not in ours] if folder.is_dir() else []


def listed(names: list[str]) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is_run(path: Path) -> bool:
    return (path / CONFIG_NAME).is_file() and any((path / name).exists() for name in _RUN_FILES - {CONFIG_NAME})


def _is_run_of_checkpoints(path: Path) -> bool:
    return any(name.startswith("step_") and (path / name / "manifest.json").is_file() for name in _names(path))


def _is_prepared(path: Path) -> bool:
    return str(_json(path / "manifest.json").get("format", "")).startswith("fineline-prepared-")


def _is_plan(path: Path) -> bool:
    return (path / "plan.json").is_file() and (path / "plan.npz").is_file()


def _prepared_of(run: Path) -> str:
    prepared = _json(run / "order.json").get("prepared")
    return f" (its prepared data is in {prepared})" if prepared else ""


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_KINDS: tuple[tuple[Callable[[Path], bool], str], ...] = (
    (_is_run, "is a run directory"),
    (_is_run_of_checkpoints, "is a folder of checkpoints"),
    (lambda path: {"sha256", "body"} <= _json(path / "manifest.json").keys(), "is a checkpoint"),
    (_is_prepared, "is a folder of prepared data"),
    (_is_plan, "is a compiled suite"),
    (lambda path: (path / "config.json").is_file(), "is a Hugging Face folder"),
)


def _names(path: Path) -> list[str]:
    return sorted(os.listdir(path))
