"""DeepSpeed's engine computes what Hugging Face's LlamaForCausalLM with torch's AdamW computes, at every ZeRO stage."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from tests.parity.test_layouts import Z_LOSS, Training, _agree, _training, reference, reference_bf16
from tests.parity.workers import FUSED_BY_DEEPSPEED, Layout
from tests.support.ranks import run_ranks

PLAIN = Layout("one process", micro_batch_size=4)
MEGATRON = [
    PLAIN,
    Layout("tied", tie_embeddings=True),
    Layout("no norm decay", decay="matrices"),
    Layout("z-loss", z_loss=Z_LOSS),
]
BOTH = "optimizer and parameters"
LAYOUTS = [
    Layout("ZeRO-0", zero=0),
    Layout("ZeRO-1", zero=1),
    Layout("ZeRO-2", zero=2),
    Layout("ZeRO-3", zero=3),
    Layout("ZeRO-3, weights offloaded too", zero=3, offload=BOTH),
    Layout("TP2 x ZeRO-3", zero=3, tensor=2),
    Layout("ZeRO-3, fused, selective", kernels=FUSED_BY_DEEPSPEED, zero=3, recompute="selective"),
]
SLOW = {
    1: [Layout("ZeRO-1 alone", zero=1), Layout("ZeRO-3 alone", zero=3)],
    2: [
        Layout("ZeRO-1, offloaded", zero=1, offload="optimizer"),
        Layout("ZeRO-2, offloaded", zero=2, offload="optimizer"),
        Layout("ZeRO-3, offloaded", zero=3, offload="optimizer"),
        Layout("ZeRO-3, tied", zero=3, tie_embeddings=True),
        Layout("TP2 x ZeRO-1", zero=1, tensor=2),
        Layout("ZeRO-1, one microbatch", zero=1, micro_batch_size=8),
        Layout("ZeRO-2, not overlapped", zero=2, overlap=False),
        Layout("ZeRO-0, z-loss", zero=0, z_loss=Z_LOSS),
        Layout("ZeRO-3, z-loss", zero=3, z_loss=Z_LOSS),
        Layout("ZeRO-1, no norm decay", zero=1, decay="matrices"),
        Layout("ZeRO-3, no norm decay", zero=3, decay="matrices"),
        Layout("ZeRO-2, tied", zero=2, tie_embeddings=True),
        Layout("ZeRO-2, full recomputation", zero=2, recompute="full"),
        Layout("ZeRO-3, full recomputation", zero=3, recompute="full"),
        Layout("TP2 x ZeRO-0", zero=0, tensor=2),
        Layout("ZeRO-1, fused", kernels=FUSED_BY_DEEPSPEED, zero=1),
        Layout("ZeRO-3, fused, tied", kernels=FUSED_BY_DEEPSPEED, zero=3, tie_embeddings=True),
        Layout("TP2 x ZeRO-1, fused, z-loss", kernels=FUSED_BY_DEEPSPEED, zero=1, tensor=2, z_loss=Z_LOSS),
    ],
    4: [
        Layout("DP2 x TP2 x ZeRO-1", zero=1, tensor=2),
        Layout("DP2 x TP2 x ZeRO-3", zero=3, tensor=2),
        Layout("DP4 x ZeRO-3", zero=3),
    ],
}


def _train(layouts: list[Layout], world_size: int) -> dict[str, list[dict[str, Any]]]:
    ranks = run_ranks("tests.parity.workers:train", world_size, layouts)
    return {per_rank[0]["name"]: list(per_rank) for per_rank in zip(*ranks, strict=True)}


@pytest.fixture(scope="module")
def megatron() -> dict[str, dict[str, Any]]:
    return {name: ranks[0] for name, ranks in _train(MEGATRON, 1).items()}


@pytest.fixture(scope="module")
def references(megatron: dict[str, dict[str, Any]]) -> dict[Training, dict[str, Any]]:
    return {_training(layout): reference(layout, megatron[layout.name]["start"]) for layout in MEGATRON}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict[str, Any]]]:
    return _train(LAYOUTS, 2)


@pytest.fixture(scope="module")
def trained_slowly() -> dict[str, list[dict[str, Any]]]:
    return {name: ranks for size, layouts in SLOW.items() for name, ranks in _train(layouts, size).items()}


def _agrees(layout: Layout, ranks: list[dict[str, Any]], megatron: Any, references: Any) -> None:
    _agree(ranks, references[_training(layout)])
    same = next(one for one in MEGATRON if _training(one) == _training(layout))
    for rank in ranks:
        np.testing.assert_allclose(rank["validation"], megatron[same.name]["validation"], rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_it_trains_like_hugging_face_and_validates_like_megatron(
    layout: Layout, trained: Any, megatron: Any, references: Any
) -> None:
    _agrees(layout, trained[layout.name], megatron, references)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [one for layouts in SLOW.values() for one in layouts], ids=lambda one: one.name)
def test_more_layouts_train_like_hugging_face(
    layout: Layout, trained_slowly: Any, megatron: Any, references: Any
) -> None:
    _agrees(layout, trained_slowly[layout.name], megatron, references)


SCORED = ["ZeRO-1", "TP2 x ZeRO-3"]
SCORED_SLOWLY = ["ZeRO-3", "ZeRO-3, weights offloaded too"]


@pytest.mark.parametrize("names", [SCORED, pytest.param(SCORED_SLOWLY, marks=pytest.mark.slow)], ids=["some", "more"])
def test_scoring_during_training_leaves_every_weight_bitwise_the_same(names: list[str], trained: Any) -> None:
    layouts = [Layout(**{**vars(layout), "score": True}) for layout in LAYOUTS if layout.name in names]
    assert len(layouts) == 2
    for name, ranks in _train(layouts, 2).items():
        for quiet, disturbed in zip(trained[name], ranks, strict=True):
            assert quiet["losses"] == disturbed["losses"], name
            for (*_, expected), (*_, got) in zip(quiet["weights"], disturbed["weights"], strict=True):
                assert np.array_equal(expected, got), name


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_bf16_trains_like_hugging_face_in_bf16_with_fp32_master_weights(stage: int) -> None:
    layout = Layout("bf16", zero=stage, compute="bf16")
    (start,) = _train([Layout("one process", compute="bf16")], 1)["one process"]
    oracle = reference_bf16(layout, start["start"])
    for rank in _train([layout], 2)["bf16"]:
        # As between Megatron and the oracle (test_layouts): bf16 keeps 8 bits, sums over many cancel errors.
        np.testing.assert_allclose(rank["losses"], oracle["losses"], rtol=5e-4)
        np.testing.assert_allclose(rank["norms"], oracle["norms"], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeed's AdamW is compiled on first use: needs a C++ compiler"
)
def test_deepspeeds_own_adamw_trains_like_torchs(references: Any) -> None:
    layouts = [
        Layout("CPUAdam, ZeRO-2", zero=2, offload="optimizer", adam="deepspeed"),
        Layout("CPUAdam, ZeRO-3", zero=3, offload="optimizer", adam="deepspeed"),
    ]
    for ranks in _train(layouts, 2).values():
        _agree(ranks, references[_training(PLAIN)])
