"""A probe leaves no memory behind: not in the model, not in Megatron's buffers, not in a cache of ours."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.parity.memory_workers import REPEATS
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


pytestmark = pytest.mark.slow
every_layout = pytest.mark.parametrize("name", [one.name for layouts in LAYOUTS.values() for one in layouts])


@every_layout
def test_memory_after_a_probe_equals_memory_before(name: str, measured: Any) -> None:
    for rank in measured[name]:
        # By size: the random state is put back as a new tensor. Less is allowed: a pipeline stage's last input goes.
        assert not Counter(rank["after"].values()) - Counter(rank["before"].values())


def test_torchs_allocator_gets_everything_back(measured: Any) -> None:
    assert [rank["net"] for rank in measured["one process"]] == [0]


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_many_probes_do_not_grow_the_heap(world_size: int) -> None:
    hidden_states = 256 * 64 * 4  # of one of these rows, fp32; a probe that kept one would grow by 20 of them
    for rank in run_ranks("tests.parity.memory_workers:probe_often", world_size, LAYOUTS[world_size]):
        # The rest is Python's and gloo's, which come and go.
        assert max(rank) < REPEATS * hidden_states / 4, dict(zip(LAYOUTS[world_size], rank, strict=True))
