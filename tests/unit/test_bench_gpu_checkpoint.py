"""What the checkpoint benchmark makes of its measurements, and that its state has the model's sizes."""

from __future__ import annotations

import pytest
import torch

from tests.bench.gpu_checkpoint import Round, sizes, state_of, summarize

ROUNDS: list[Round] = [
    {"copy": 1.0, "stall": 1.1, "saved": 4.0, "written": 2.0, "dcp_async_save": 8.0, "dcp_async_save_saved": 9.0},
    {"copy": 2.0, "stall": 2.0, "saved": 3.0, "written": 3.0, "dcp_async_save": 6.0, "dcp_async_save_saved": 7.0},
    {"copy": 4.0, "stall": 4.8, "saved": 5.0, "written": 4.0, "dcp_async_save": 7.0, "dcp_async_save_saved": 8.0},
]


def test_the_stall_is_compared_with_the_copy_of_its_own_round() -> None:
    figures = summarize(ROUNDS, state_bytes=10, missing={"dcp_async_save_pinned": "no GPU"})
    assert figures["stall_over_copy"]["median"] == pytest.approx(1.1)  # of 1.1, 1.0 and 1.2
    assert figures["durable_over_write_fsync"]["median"] == pytest.approx(1.25)  # of 2.0, 1.0 and 1.25
    assert figures["copy_bytes_per_second"] == 5.0 and figures["durable_bytes_per_second"] == 2.5
    assert figures["dcp_async_save_stall_seconds"] == 7.0 and figures["dcp_stall_over_ours"] == 3.5


def test_the_better_peer_is_the_one_compared_with_and_an_absent_one_has_a_reason() -> None:
    both = [one | {"dcp_async_save_pinned": 4.0, "dcp_async_save_pinned_saved": 9.0} for one in ROUNDS]
    assert summarize(both, state_bytes=10, missing={})["dcp_stall_over_ours"] == 2.0
    figures = summarize(ROUNDS, state_bytes=10, missing={"dcp_async_save_pinned": "no GPU"})
    assert figures["dcp_async_save_pinned_stall_seconds"] is None
    assert set(figures["missing"]) == {name for name, value in figures.items() if value is None}


def test_the_state_holds_every_parameter_of_the_model() -> None:
    spec = sizes("1.3b", quick=True)
    chunks = state_of(spec, torch.device("meta"))
    assert sum(chunk.numel for chunk in chunks) == spec.num_parameters == 58_073_600
    assert sizes("1.3b", quick=False).num_parameters == 1_345_423_360
