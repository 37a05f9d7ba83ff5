"""Validation loss per domain, on fixed held-out windows, through the same forward-only path as the probes.

Because every token's log-probability comes back in float64 on every rank, the figures do not depend on layout,
world size or order; bits per byte compare across tokenizers.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pretrain.engine.base import PackedRow, PackedRows
from pretrain.errors import DataError
from pretrain.hooks.base import Run, StepReport
from pretrain.track import names


@dataclass(frozen=True, slots=True)
class _Domain:
    name: str
    first_pair: int
    num_pairs: int
    num_bytes: int


class ValidationHook:
    """Measures before each checkpoint is written, so that the record of a checkpoint is complete.

    Args:
        tokens: int32 token ids of the held-out text of each domain.
        token_bytes: int32, UTF-8 bytes of text each of these tokens stands for.
        sequence_length: tokens of a window.
        tokens_per_row: windows are packed into rows of about this many tokens.
        document_starts: int64, where in its tokens the documents of each domain begin: a token then sees its own
            document only, as in training with `data.document_mask`. None: all that stands before it in its window.

    Raises:
        DataError: a domain has not one whole window.
    """

    def __init__(
        self,
        tokens: Mapping[str, np.ndarray],
        token_bytes: Mapping[str, np.ndarray],
        *,
        sequence_length: int,
        tokens_per_row: int,
        document_starts: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._domains: list[_Domain] = []
        rows: list[PackedRow] = []
        per_row = max(1, tokens_per_row // sequence_length)
        first_pair = 0
        for name, ids in tokens.items():
            windows_WT = _windows(name, ids, sequence_length)
            num_targets = len(windows_WT) * sequence_length
            starts = np.empty(0, dtype=np.int64) if document_starts is None else document_starts[name]
            ends_WS = _ends(starts, num_windows=len(windows_WT), sequence_length=sequence_length)
            num_bytes = int(token_bytes[name][1 : num_targets + 1].sum(dtype=np.int64))
            self._domains.append(_Domain(name, first_pair, num_targets, num_bytes))
            rows += [
                _row(
                    windows_WT[start : start + per_row],
                    ends_WS[start : start + per_row] - start * sequence_length,
                    first_pair + start * sequence_length,
                )
                for start in range(0, len(windows_WT), per_row)
            ]
            first_pair += num_targets
        self._rows = PackedRows(rows=rows, num_pairs=first_pair, digest=_digest(rows))

    def on_start(self, run: Run) -> None:
        """Nothing to prepare."""

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing to do."""

    def on_save(self, run: Run) -> None:
        """Scores all domains and logs nats per token and bits per byte of each."""
        if not run.calendar.is_due(run.state.step) or run.state.step == run.info.resume_step:
            return  # on resume: the row of this step was written before its checkpoint
        started = time.perf_counter()
        log_probs = run.engine.score(self._rows).log_prob_P
        values = {}
        for domain in self._domains:
            nats = -float(log_probs[domain.first_pair : domain.first_pair + domain.num_pairs].sum())
            values[names.validation_loss(domain.name)] = nats / domain.num_pairs
            values[names.validation_bits_per_byte(domain.name)] = nats / math.log(2) / domain.num_bytes
        values[names.TIME_VALIDATION_SECONDS] = time.perf_counter() - started
        run.tracker.log(values, step=run.state.step, tokens=run.state.tokens)

    def on_end(self, run: Run) -> None:
        """Nothing to do."""


def _windows(name: str, ids: np.ndarray, sequence_length: int) -> np.ndarray:
    """[W, sequence_length + 1]; neighbours share one token, so that every token but the first is a target once."""
    count = (len(ids) - 1) // sequence_length
    if count < 1:
        raise DataError(
            f"data.sources.{name} has {len(ids)} validation tokens, fewer than one window of "
            f"train.sequence_length + 1 = {sequence_length + 1}. Raise data.validation_tokens or hold out more text."
        )
    starts = np.arange(count)[:, None] * sequence_length
    return np.asarray(ids)[starts + np.arange(sequence_length + 1)]


def _ends(document_starts: np.ndarray, *, num_windows: int, sequence_length: int) -> np.ndarray:
    """[W, sequence_length]: over all windows laid end to end, where each token's document or window ends."""
    size = num_windows * sequence_length
    bounds = np.union1d(document_starts, np.arange(num_windows + 1) * sequence_length)
    bounds = bounds[bounds <= size]
    return np.repeat(bounds[1:], np.diff(bounds)).reshape(num_windows, sequence_length)


def _row(windows_WT: np.ndarray, ends_WS: np.ndarray, first_pair: int) -> PackedRow:
    count, length = windows_WT.shape[0], windows_WT.shape[1] - 1
    size = count * length
    flat = np.arange(size, dtype=np.int64)
    return PackedRow(
        prefix=0,
        num_blocks=count,
        block_length=length,
        tokens_S=windows_WT[:, :-1].astype(np.int32).reshape(-1),
        positions_S=np.tile(np.arange(length, dtype=np.int32), count),
        ends_S=ends_WS.astype(np.int32).reshape(-1),
        num_real_tokens=size,
        wanted_W=flat,
        pair_wanted_P=flat,
        pair_target_P=windows_WT[:, 1:].astype(np.int64).reshape(-1),
        pair_id_P=first_pair + flat,
    )


def _digest(rows: list[PackedRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.tokens_S.tobytes())
        digest.update(row.pair_target_P.tobytes())
    return digest.hexdigest()
