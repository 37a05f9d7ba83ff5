"""What a plan says a rank needs, against what a GPU's allocator gave out in a step of the real engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config.load import compose
from pretrain.engine.layout import ParallelLayout
from pretrain.plan.memory import rank_memory
from tests.support.ranks import run_ranks
from tests.unit.plan.cases import spec_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MODEL = [
    "experiment=demo",
    "tokenizer.vocab_size=32000",
    "model.num_layers=16",
    "model.hidden_size=1024",
    "model.ffn_hidden_size=2816",
    "model.num_attention_heads=16",
    "train.sequence_length=1024",
    "train.micro_batch_size=8",
    "train.global_batch_size=16",
    "precision=bf16",
    "cluster=h200",  # kernels are planned for a GPU
    "cluster.processes_per_node=1",
]
CASES = [[], ["engine.recompute=full"], ["data.document_mask=true"], ["optimizer.z_loss=1e-4"]]


@pytest.fixture(scope="module")
def allocated() -> list[int]:
    found: Any = run_ranks("tests.unit.plan.memory_workers:allocated", 1, [[*MODEL, *case] for case in CASES])
    return list(found[0])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_gpu_gives_out_what_is_planned(allocated: list[int], case: int) -> None:
    config = compose([*MODEL, *CASES[case]])
    layout = ParallelLayout.create(config, world_size=1)
    assert rank_memory(config, spec_of(config), layout, stage=0).total == pytest.approx(allocated[case], rel=0.1)
