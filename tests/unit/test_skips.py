"""Ranges that are left out, against a list of what is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import ConfigError
from pretrain.skips import Skips


@given(lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=6))
def test_the_index_of_every_kept_sample_is_that_of_a_list(lengths: list[tuple[int, int]]) -> None:
    texts, kept, position = [], [], 0
    for gap, length in lengths:
        kept += range(position, position + gap)
        texts.append(f"{position + gap}:{position + gap + length}")
        position += gap + length
    kept += range(position, position + 20)
    skips = Skips.parse(texts)
    assert [skips.index(n) for n in range(len(kept))] == kept
    assert [i for first, count in skips.runs(0, len(kept)) for i in range(first, first + count)] == kept
    assert skips.texts() == texts


def test_only_what_lies_before_an_index_is_compared() -> None:
    assert Skips.parse(["2:4", "8:20"]).before(10) == ((2, 4), (8, 10))
    assert Skips.parse(["2:4", "8:20"]).before(8) == ((2, 4),)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["5"], r"data\.skip\[0\]='5' is not a range.*first:stop"),
        (["5:5"], "is empty"),
        (["5:9", "8:12"], r"data\.skip\[1\]='8:12' begins before 9"),
    ],
)
def test_what_is_no_range_is_named(texts: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Skips.parse(texts)
