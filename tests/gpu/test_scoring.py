"""Scoring on CUDA: the kernels behind a tree's attention, no wait of the host, no copy of a prefix for each block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.model.layers.tree import TreeMask, tree_attention
from tests.parity.test_layouts import huggingface_model
from tests.parity.test_scoring_repeats import rows
from tests.parity.workers import Layout
from tests.support.hf_scorer import HuggingFaceScorer
from tests.support.ranks import run_ranks
from tests.unit.model.test_tree import SCALE, dense, row_of, states

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(0, 5, 48), (70, 5, 48), (512, 7, 160), (33, 3, 9), (64, 0, 1)]
"""Prefix, blocks and their length; 9 is a length that no kernel likes."""


@pytest.mark.parametrize(("prefix", "blocks", "length"), SHAPES)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
# A bf16 part is rounded by at most half a unit, 2^-7 below 4, weights before the product with values too; fp32
# kernels multiply as three TF32 products, whose sum keeps 21 bits or more.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-5), (torch.float32, 2e-5)])
def test_every_kernel_gives_dense_attention(
    prefix: int, blocks: int, length: int, single: bool, groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    row = row_of(np.random.default_rng(0), prefix=prefix, blocks=blocks, length=length, tail=16, single=single)
    inputs = states(row, heads=4, groups=groups, dtype=dtype, width=64)
    tree = TreeMask(row, torch.from_numpy(row.ends_S).cuda(), dtype=dtype, compiled=True)
    found = tree_attention(*(t.cuda() for t in inputs), tree, SCALE)[:, 0].cpu().double()
    real = row.ends_S > 0
    assert torch.isfinite(found).all()
    assert (found - dense(*inputs, row))[real].abs().max() < tolerance


def test_a_long_prefix_is_not_copied_for_each_block():
    heads, width, prefix, blocks = 8, 64, 2048, 128
    row = row_of(np.random.default_rng(1), prefix=prefix, blocks=blocks, length=32, tail=0, single=False)
    inputs = [t.cuda() for t in states(row, heads=heads, groups=heads, dtype=torch.bfloat16, width=width)]
    tree = TreeMask(row, torch.from_numpy(row.ends_S).cuda(), dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tree_attention(*inputs, tree, SCALE)
    # Queries in fp32 while they are merged are the largest part; keys copied for each block were 268 MB, so values.
    in_bf16 = len(row.ends_S) * heads * width * 2
    assert torch.cuda.max_memory_allocated() - before < 12 * in_bf16 < blocks * prefix * heads * width * 2 / 3


LAYOUTS = [
    Layout("fp32"),
    Layout("fp32, plain", kernels={"layers": "plain", "compile": False}),
    Layout("bf16", compute="bf16"),
    Layout("bf16, plain", compute="bf16", kernels={"layers": "plain", "compile": False}),
]


@pytest.fixture(scope="module")
def scored() -> dict[str, dict[str, Any]]:
    payload = {"layouts": LAYOUTS, "apart": None, "watch": True}
    (found,) = run_ranks("tests.parity.scoring_workers:score", 1, payload)
    return {layout.name: result for layout, result in zip(LAYOUTS, found, strict=True)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_scores_equal_hugging_faces_on_a_cpu_and_the_host_never_waits(layout: Layout, scored: Any) -> None:
    result, packed = scored[layout.name], rows()
    expected = HuggingFaceScorer(huggingface_model(result["spec"], result["weights"]).eval()).score(packed)
    difference = np.abs(result["answers"].log_prob_P - expected.log_prob_P)
    # bf16 keeps 8 bits: logits of this model lie below 4, where half a unit is 2^-7, and errors of layers add to it.
    assert difference.max() < (2e-5 if layout.compute == "fp32" else 0.1)
    assert difference.mean() < (2e-6 if layout.compute == "fp32" else 0.02)
