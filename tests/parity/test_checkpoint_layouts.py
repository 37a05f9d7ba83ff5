"""One checkpoint for all layouts: saved under one, continued under another as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.workers import Layout
from tests.support.ranks import run_ranks

LAYOUTS = {
    2: [
        Layout("DP2"),
        Layout("TP2+SP", tensor=2, sequence=True),
        Layout("PP2", extra={"pipeline": 2}),
        Layout("PP2xVPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("CP2", extra={"context": 2}),
        Layout("DP2 plain", distributed_optimizer=False),
    ],
    4: [Layout("TP2xPP2", tensor=2, extra={"pipeline": 2})],
}
NAMES = [layout.name for layouts in LAYOUTS.values() for layout in layouts]


Matrix = tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, dict[str, Any]]]]]
"""Uninterrupted runs: per layout and rank; resumed ones: per layout, rank and source."""


def run_matrix(layouts_by_size: dict[int, list[Layout]], root: Path) -> Matrix:
    """Saves under every layout, then loads every checkpoint under every layout and goes on."""
    names = [layout.name for layouts in layouts_by_size.values() for layout in layouts]
    uninterrupted, resumed = {}, {}
    for world_size, layouts in layouts_by_size.items():
        ranks = run_ranks("tests.parity.checkpoint_workers:save_and_continue", world_size, (layouts, root))
        for index, layout in enumerate(layouts):
            uninterrupted[layout.name] = [rank[index] for rank in ranks]
    for world_size, layouts in layouts_by_size.items():
        payload = (layouts, names, root)
        ranks = run_ranks("tests.parity.checkpoint_workers:load_and_continue", world_size, payload)
        for index, layout in enumerate(layouts):
            resumed[layout.name] = [rank[index] for rank in ranks]
    return uninterrupted, resumed


def continues(matrix: Matrix, source: str, target: str) -> None:
    """The next ten losses are those of the uninterrupted run of the source."""
    uninterrupted, resumed = matrix
    for rank in resumed[target]:
        # fp32 sums in another order, as between layouts without a checkpoint.
        np.testing.assert_allclose(rank[source]["losses"], uninterrupted[source][0]["losses"], rtol=1e-6)


def continues_bitwise(matrix: Matrix, name: str) -> None:
    """Losses, weights and moments are those of a run that was never interrupted."""
    uninterrupted, resumed = matrix
    for expected, got in zip(uninterrupted[name], resumed[name], strict=True):
        assert got[name]["losses"] == expected["losses"]
        for (key, start, tensors), (other_key, other_start, other) in zip(
            expected["state"], got[name]["state"], strict=True
        ):
            assert (key, start) == (other_key, other_start)
            for kind, values in tensors.items():
                assert np.array_equal(values, other[kind]), f"{kind} of {key}"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return run_matrix(LAYOUTS, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_a_run_continues_under_another_layout(source: str, target: str, matrix: Matrix) -> None:
    continues(matrix, source, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_same_layout_continues_bitwise(name: str, matrix: Matrix) -> None:
    continues_bitwise(matrix, name)
