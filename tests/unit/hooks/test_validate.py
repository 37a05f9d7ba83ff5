"""What validation packs: without documents the whole window is seen, with them a token's own document."""

from __future__ import annotations

import numpy as np

from pretrain.hooks.validate import ValidationHook


def hook(starts: list[int] | None, *, tokens_per_row: int = 16) -> ValidationHook:
    ids = np.arange(35, dtype=np.int32)
    return ValidationHook(
        {"one": ids},
        {"one": np.ones(35, dtype=np.int32)},
        sequence_length=8,
        tokens_per_row=tokens_per_row,
        document_starts=None if starts is None else {"one": np.array(starts, dtype=np.int64)},
    )


def test_a_window_is_seen_as_a_whole_unless_documents_are_named() -> None:
    for row in hook(None)._rows.rows:
        assert row.ends_S.tolist() == [8] * 8 + [16] * 8


def test_a_token_ends_with_its_document_or_its_window() -> None:
    starts = [0, 3, 8, 13, 30, 34]
    for tokens_per_row in (8, 16, 32):
        found = [row.ends_S for row in hook(starts, tokens_per_row=tokens_per_row)._rows.rows]
        for number, ends in enumerate(found):
            first = number * tokens_per_row
            for at, end in enumerate(ends.tolist()):
                position = first + at
                window = (position // 8 + 1) * 8
                document = min([start for start in starts if start > position], default=99)
                assert first + end == min(window, document)
