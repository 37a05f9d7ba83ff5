"""What a calendar puts on disk and how long it takes, against sums made by hand."""

from __future__ import annotations

import pytest

from pretrain.plan.storage import storage_plan
from tests.unit.plan.cases import small

TEN = ("train.steps=10", "checkpoint.early=[0, 1]", "checkpoint.every=4 steps", "checkpoint.per_decade=null")


def _plan(*overrides: str) -> tuple[int, int, int, int]:
    plan = storage_plan(small((*TEN, *overrides)), stored=100, exported=90, devices=4)
    return plan.saves, plan.resumable, plan.exports, plan.total_bytes


def test_disk_counts_full_checkpoints_reduced_ones_and_exports() -> None:
    plain = ("checkpoint.export=none", "checkpoint.keep=null")
    assert _plan(*plain) == (5, 5, 0, 5 * 1200)  # steps 0, 1, 4, 8, 10
    assert _plan("checkpoint.keep=2", "checkpoint.export=last") == (5, 2, 1, 2 * 1200 + 3 * 400 + 360)
    assert _plan("checkpoint.keep=9", "checkpoint.export=all")[1:3] == (5, 5)


def test_milestones_keep_their_state_beside_the_newest() -> None:
    options = ("checkpoint.keep=1", "checkpoint.milestones=4 steps", "checkpoint.export=all")
    # State of 4, 8 and 10.
    assert _plan(*options, "checkpoint.export_dtype=bfloat16") == (5, 3, 5, 3 * 1200 + 2 * 400 + 5 * 180)
    options = (options[0], "checkpoint.milestones=5 steps", "checkpoint.export=none")
    assert _plan(*options)[1] == 1  # 10 is the only multiple of 5 that is saved, and the newest anyway


@pytest.mark.parametrize(("background", "stall"), [("true", 0.1), ("false", 1.3)])
def test_a_save_waits_for_the_copy_and_without_background_for_the_writing(background: str, stall: float) -> None:
    plan = storage_plan(
        small(
            (
                *TEN,
                f"checkpoint.background={background}",
                "cluster.host_gigabytes_per_second=30",
                "cluster.storage_gigabytes_per_second=10",
            )
        ),
        stored=10**9,
        exported=10**9,
        devices=4,
    )
    assert plan.stall_seconds == pytest.approx(stall)  # 12 GB over 4 devices of 30 GB/s; and over 10 GB/s
    assert plan.write_seconds == pytest.approx(1.2)


def test_times_of_a_save_are_left_out_where_bandwidths_are_not_known() -> None:
    plan = storage_plan(small(TEN), stored=1, exported=1, devices=1)
    assert plan.stall_seconds is None and plan.write_seconds is None
