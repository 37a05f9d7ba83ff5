"""A step whose loss or gradient is not finite is left out, on every rank, under either engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.parity.workers import Layout
from tests.support.ranks import run_ranks

LAYOUTS = [
    Layout("DP2"),
    Layout("ZeRO-0", zero=0),
    Layout("ZeRO-2, offloaded", zero=2, offload="optimizer"),
    Layout("ZeRO-3", zero=3),
    Layout("ZeRO-1, bf16", zero=1, compute="bf16"),
]
SLOW = [
    Layout("TP2", tensor=2),
    Layout("PP2", extra={"pipeline": 2}),
    Layout("ZeRO-1", zero=1),
    Layout("ZeRO-2", zero=2),
    Layout("ZeRO-3, offloaded", zero=3, offload="optimizer"),
    Layout("ZeRO-2, bf16", zero=2, compute="bf16"),
    Layout("TP2 x ZeRO-1", zero=1, tensor=2),
]


def _overshoot(layouts: list[Layout]) -> dict[str, list[dict[str, Any]]]:
    ranks = run_ranks("tests.parity.skip_workers:overshoot", 2, layouts)
    return {per_rank[0]["name"]: list(per_rank) for per_rank in zip(*ranks, strict=True)}


@pytest.fixture(scope="module")
def quick() -> dict[str, list[dict[str, Any]]]:
    return _overshoot(LAYOUTS)


@pytest.fixture(scope="module")
def slow() -> dict[str, list[dict[str, Any]]]:
    return _overshoot(SLOW)


@pytest.mark.parametrize("name", [layout.name for layout in LAYOUTS])
def test_weights_and_the_count_of_updates_stay_as_they_were(name: str, quick: Any) -> None:
    _stay(quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [layout.name for layout in SLOW])
def test_they_stay_in_further_layouts(name: str, slow: Any) -> None:
    _stay(slow[name])


def _stay(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["usual"] == [False, False]
        assert found["skipped"] and not (math.isfinite(found["loss"]) and math.isfinite(found["norm"]))
        (updates, weights), (updates_after, weights_after) = found["before"], found["after"]
        assert updates == updates_after == 2
        for before, after in zip(weights, weights_after, strict=True):
            np.testing.assert_array_equal(before, after)
