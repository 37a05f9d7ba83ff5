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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Per layout the results of its ranks; the checkpoints lie in `root`."""
    found = {}
    for world_size, layouts in LAYOUTS.items():
        ranks = run_ranks("tests.parity.checkpoint_workers:save_and_continue", world_size, (layouts, root))
        for index, layout in enumerate(layouts):
            found[layout.name] = [rank[index] for rank in ranks]
    return found


@pytest.fixture(scope="module")
def resumed(root: Path, uninterrupted: Any) -> dict[str, list[dict[str, dict[str, Any]]]]:
    """Per layout, per rank, per source."""
    found = {}
    for world_size, layouts in LAYOUTS.items():
        ranks = run_ranks("tests.parity.checkpoint_workers:load_and_continue", world_size, (layouts, NAMES, root))
        for index, layout in enumerate(layouts):
            found[layout.name] = [rank[index] for rank in ranks]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_a_run_continues_under_another_layout(source: str, target: str, uninterrupted: Any, resumed: Any) -> None:
    for rank in resumed[target]:
        # The uninterrupted run of the source; fp32 sums in another order, as between layouts without a checkpoint.
        np.testing.assert_allclose(rank[source]["losses"], uninterrupted[source][0]["losses"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_same_layout_continues_bitwise(name: str, uninterrupted: Any, resumed: Any) -> None:
    for expected, got in zip(uninterrupted[name], resumed[name], strict=True):
        assert got[name]["losses"] == expected["losses"]
        for (key, start, tensors), (other_key, other_start, other) in zip(
            expected["state"], got[name]["state"], strict=True
        ):
            assert (key, start) == (other_key, other_start)
            for kind, values in tensors.items():
                assert np.array_equal(values, other[kind]), f"{kind} of {key}"
