"""Rows on their way into the engine: the padding of a layout is the engine's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pretrain.checkpoint.reference import reference_rows
from pretrain.engine.sharded.staged import divisible


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7, 8, 10, 16, 40])
def test_a_row_gets_the_least_padding_that_a_layout_can_cut(parts: int) -> None:
    (row,) = reference_rows(997).rows
    longer = divisible(row, parts)
    assert len(longer.tokens_S) == math.ceil(64 / parts) * parts
    for name in ("tokens_S", "positions_S", "ends_S"):
        whole = getattr(longer, name)
        np.testing.assert_array_equal(whole[:64], getattr(row, name))
        assert not whole[64:].any() and whole.dtype == np.int32
    for name in {one.name for one in dataclasses.fields(row)} - {"tokens_S", "positions_S", "ends_S"}:
        assert getattr(longer, name) is getattr(row, name)


def test_a_row_that_fits_is_the_same_row() -> None:
    (row,) = reference_rows(997).rows
    assert divisible(row, 8) is row
