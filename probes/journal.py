"""`watch.jsonl`: what was scored beside training, what was passed over and why, and what of it has been shown.

Not `events.jsonl`, whose only writer is training. Two processes append here, whole lines under the store's lock:
the watcher what it does, and whoever shows scores in W&B and the other views that it has.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.errors import ProbeError
from pretrain.locks import exclusive
from probes.store import LOCK_FILE

JOURNAL_FILE = "watch.jsonl"
SCORED = "scored_beside"
SHOWN = "shown"

Place = tuple[int, str]
"""Step and plan hash."""


class Journal:
    """What the watcher did with one run.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / JOURNAL_FILE
        self._lock = directory / LOCK_FILE

    def write(self, kind: str, *, step: int, **fields: Any) -> None:
        """Adds a line, on disk when this returns.

        Raises:
            ProbeError: it cannot be written.
        """
        row = {"time": round(time.time(), 3), "step": step, "kind": kind, **fields}
        line = (json.dumps(row, default=str) + "\n").encode()
        try:
            with exclusive(self._lock), self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = b"\n" + line  # after what a killed process left of its last line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ProbeError(f"{self.path} cannot be written: {error}. Check the disk's space.") from error

    def rows(self) -> list[dict[str, Any]]:
        """Every whole line; what a killed process left of one is passed over.

        Raises:
            ProbeError: the file cannot be read.
        """
        return read_rows(self.path)

    def unshown(self) -> list[Place]:
        """Checkpoints scored beside training whose scores no view has been given, in the order of scoring."""
        waiting: dict[Place, None] = {}
        for row in self.rows():
            if row.get("kind") not in (SCORED, SHOWN):
                continue
            place = int(row["step"]), str(row["plan_hash"])
            if row["kind"] == SCORED:
                waiting[place] = None
            else:
                waiting.pop(place, None)
        return list(waiting)

    def mark_shown(self, places: Iterable[Place]) -> None:
        """Records that views have been given these scores."""
        for step, plan_hash in places:
            self.write(SHOWN, step=step, plan_hash=plan_hash)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a file of lines; lines that are none are passed over, a missing file has none.

    Raises:
        ProbeError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
