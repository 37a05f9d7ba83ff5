"""A probe leaves no memory behind: not in the model, not in Megatron's buffers, not in a cache of ours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.workers import Layout
from tests.support.ranks import run_ranks

LAYOUTS = {
    1: [Layout("one process")],
    2: [
        Layout("DP2"),
        Layout("TP2, sequence parallel", tensor=2, sequence=True),
        Layout("PP2", extra={"pipeline": 2}),
        Layout("PP2 x VPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("CP2", extra={"context": 2}),
        Layout("ZeRO-1", zero=1),
        Layout("ZeRO-3", zero=3),
    ],
}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for world_size, layouts in LAYOUTS.items():
        for per_rank in zip(*run_ranks("tests.parity.memory_workers:probe", world_size, layouts), strict=True):
            found[per_rank[0]["name"]] = list(per_rank)
    return found


@pytest.mark.parametrize("name", [layout.name for layouts in LAYOUTS.values() for layout in layouts])
def test_memory_after_a_probe_equals_memory_before(name: str, measured: Any) -> None:
    for rank in measured[name]:
        assert rank["after"] == rank["before"]
        assert rank["net"] == 0
