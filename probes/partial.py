"""Answers to a part of a plan's rows, in memory and, for a scorer that may be killed, on disk.

Each slice is a file of its own that appears complete or not at all. Slices of other weights or of another
layout are not mixed with one's own: they are removed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pretrain.durable import replacing
from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ProbeError

PARTIAL_FOLDER = "probes.partial"
_NAME = re.compile(r"slice_(\d+)\.npz")


class PartialAnswers:
    """What is known of the answers to a plan's rows.

    Args:
        num_rows: rows of the plan.
        num_pairs: pairs of the plan.
        folder: where slices are kept; None keeps them in memory only.
        stamp: what slices must agree in to be put together: weights, layout.
    """

    def __init__(self, num_rows: int, num_pairs: int, *, folder: Path | None, stamp: Mapping[str, str]) -> None:
        self.seconds = 0.0
        self._log_prob_P = np.full(num_pairs, np.nan)
        self._is_greedy_P = np.zeros(num_pairs, bool)
        self._done = np.zeros(num_rows, bool)
        self._folder = folder
        self._stamp = json.dumps(dict(stamp), sort_keys=True)
        self._next = 0
        if folder is not None:
            self._read(folder)

    def missing_rows(self) -> list[int]:
        """Numbers of the rows without answers, ascending."""
        return [int(number) for number in np.flatnonzero(~self._done)]

    def add(self, rows: Sequence[int], pair_ids: np.ndarray, scored: TokenLogProbs, *, seconds: float) -> None:
        """Takes in a slice; it is on disk when this returns.

        Args:
            rows: numbers of its rows.
            pair_ids: int64, the plan's id of each of its pairs.
            scored: answers to them.
            seconds: wall time it took.

        Raises:
            ProbeError: it cannot be written.
        """
        numbers = np.asarray(rows, np.int64)
        self._take(numbers, pair_ids, scored.log_prob_P, scored.is_greedy_P, seconds)
        if self._folder is None:
            return
        path = self._folder / f"slice_{self._next:04d}.npz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    stamp=np.frombuffer(self._stamp.encode(), np.uint8),
                    rows=numbers,
                    pair_ids=pair_ids,
                    log_prob=scored.log_prob_P,
                    is_greedy=scored.is_greedy_P,
                    seconds=np.float64(seconds),
                )
        except OSError as error:
            raise ProbeError(f"{path} cannot be written: {error}. Check the disk's space and permissions.") from error
        self._next += 1

    def answers(self) -> TokenLogProbs:
        """All pairs; NaN where nothing is known."""
        return TokenLogProbs(self._log_prob_P, self._is_greedy_P)

    def remove(self) -> None:
        """Removes the files, and the folders above them that are empty then."""
        if self._folder is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._folder.parent, self._folder.parent.parent):
            with contextlib.suppress(OSError):  # not empty: another step or plan is on its way
                folder.rmdir()

    def _take(
        self, rows: np.ndarray, pair_ids: np.ndarray, log_prob: np.ndarray, is_greedy: np.ndarray, seconds: float
    ) -> None:
        self._log_prob_P[pair_ids] = log_prob
        self._is_greedy_P[pair_ids] = is_greedy
        self._done[rows] = True
        self.seconds += seconds

    def _read(self, folder: Path) -> None:
        """Takes in the slices of an earlier process; those that are of no use are removed."""
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in found:
            match = _NAME.fullmatch(path.name)
            if match is None or not self._take_file(path):
                path.unlink(missing_ok=True)
            else:
                self._next = int(match[1]) + 1

    def _take_file(self, path: Path) -> bool:
        try:
            with np.load(path, allow_pickle=False) as kept:
                if bytes(kept["stamp"]).decode() != self._stamp:
                    return False
                rows, pair_ids = kept["rows"], kept["pair_ids"]
                values = kept["log_prob"], kept["is_greedy"], float(kept["seconds"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        inside = len(rows) and 0 <= rows.min() <= rows.max() < len(self._done)
        inside = inside and (not len(pair_ids) or 0 <= pair_ids.min() <= pair_ids.max() < len(self._log_prob_P))
        if not inside or not len(pair_ids) == len(values[0]) == len(values[1]):
            return False
        self._take(rows, pair_ids, *values)
        return True
