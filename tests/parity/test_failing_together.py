"""A rank that fails while it scores, on real processes: nobody waits, all say the same, and training is unharmed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.parity.failure_workers import ENTRIES, PLACES
from tests.parity.workers import Layout
from tests.support.ranks import run_ranks

LAYOUTS = [
    Layout("data"),
    Layout("tensor and sequence", tensor=2, sequence=True),
    Layout("pipeline", extra={"pipeline": 2}),
    Layout("ZeRO-3", zero=3),
    Layout("tensor and ZeRO-3", tensor=2, zero=3),
    Layout("tensor", tensor=2),
    Layout("interleaved", extra={"pipeline": 2, "virtual_pipeline": 2}),
    Layout("context", extra={"context": 2}),
]
QUICK = 4
"""So many layouts are tested by default."""

every_layout = pytest.mark.parametrize(
    "index",
    [pytest.param(i, id=a.name, marks=[pytest.mark.slow] if i >= QUICK else []) for i, a in enumerate(LAYOUTS)],
)


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> list[list[dict[str, Any]]]:
    """Results of each rank and layout, in one job."""
    slow = any(item.get_closest_marker("slow") for item in request.session.items if item.fspath == request.fspath)
    layouts = LAYOUTS if slow else LAYOUTS[:QUICK]
    return run_ranks("tests.parity.failure_workers:fail", 2, layouts, timeout_seconds=300)


@every_layout
def test_every_rank_raises_the_same_error_and_scores_again_after(index: int, ranks: Any) -> None:
    first, second = (rank[index] for rank in ranks)
    assert first["errors"] == second["errors"]
    last_stage_only = "pipeline" in LAYOUTS[index].extra
    for place, rank, message in first["errors"]:
        if place == "head" and last_stage_only and rank == 0:
            assert message == "none", "the first stage has no head"
        else:
            assert message == f"Scoring failed on rank {rank}: MemoryError: no memory in {place}"
    assert len(first["errors"]) == 2 * len(PLACES)
    assert len({*first["scores"], *second["scores"]}) == 1


@every_layout
def test_a_rank_that_fails_before_the_ranks_agree_or_after_its_last_pass_holds_nobody_up(
    index: int, ranks: Any
) -> None:
    first, second = (rank[index] for rank in ranks)
    assert first["entries"] == second["entries"]
    assert [(place, rank) for place, rank, _ in first["entries"]] == [(p, r) for p in ENTRIES for r in (0, 1)]
    for place, rank, cause in first["entries"]:
        assert cause == f"Scoring failed on rank {rank}: MemoryError: no memory", place


@every_layout
def test_a_rank_without_prompts_and_a_rule_of_when_to_stop_that_fails_are_errors_on_every_rank(
    index: int, ranks: Any
) -> None:
    wrong, failing, after = ranks[0][index]["generating"]
    assert ranks[1][index]["generating"] == [wrong, failing, after]
    assert wrong.startswith("Scoring failed on rank 1: ValueError: invalid literal for int()")
    assert failing.startswith("Scoring failed on rank ") and failing.endswith(": MemoryError: no memory")
    assert after == "same"


def test_what_one_rank_alone_fails_at_is_an_error_on_every_rank(ranks: Any) -> None:
    (first, *told), (second, typed, *same) = (rank[0]["jointly"] for rank in ranks)
    assert first == second == "EngineError: Reading failed on rank 1: OSError: no disk"
    assert typed == "DataError: no text"
    assert told == ["EngineError: Reading failed on rank 1: no text", "EngineError: Local: of a task", "none"]
    assert same == told[1:]


@every_layout
def test_training_goes_on_bitwise_as_if_nothing_had_happened(index: int, ranks: Any) -> None:
    for rank in ranks:
        calm, disturbed = rank[index]["weights"]
        for (key, *place, values), (other, *same, found) in zip(calm, disturbed, strict=True):
            assert (key, place) == (other, same)
            np.testing.assert_array_equal(values, found)


@every_layout
def test_a_pass_has_as_many_collectives_as_a_failed_rank_makes_up_for(index: int, ranks: Any) -> None:
    for rank in ranks:
        counted = rank[index]["counted"]
        assert len(counted) > 1
        assert all(found == expected for found, expected in counted)
        assert (counted[0][1] > 0) == (LAYOUTS[index].tensor > 1)
