"""Attention of packed rows, both ways, against a dense mask in float64; no copy of the prefix for each block."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.engine.base import PackedRow
from pretrain.model.layers.tree import TreeMask, tree_attention

WIDTH = 8
SCALE = 0.3


def row_of(rng: np.random.Generator, *, prefix: int, blocks: int, length: int, tail: int, single: bool) -> PackedRow:
    """Blocks of one path or of random trees, with padding behind them; `tail` tokens of padding end the row."""
    stop = prefix + blocks * length
    ends_S = np.zeros(stop + tail, np.int32)
    ends_S[:prefix] = stop
    for start in range(prefix, stop, length):
        _fill(rng, ends_S, start, start + int(rng.integers(1, length + 1)), single)
    nothing = np.zeros(0, np.int64)
    real = int((ends_S > 0).sum())
    return PackedRow(prefix, blocks, length, ends_S, ends_S, ends_S, real, nothing, nothing, nothing, nothing)


def _fill(rng: np.random.Generator, ends_S: np.ndarray, start: int, end: int, single: bool) -> None:
    """Depth first: a run of tokens, then subtrees side by side, all of which see it."""
    if start >= end:
        return
    run = end - start if single else int(rng.integers(1, end - start + 1))
    ends_S[start : start + run] = end
    start += run
    while start < end:
        below = int(rng.integers(1, end - start + 1))
        _fill(rng, ends_S, start, start + below, single)
        start += below


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """The definition, in float64: key k is visible to query q when k <= q < end[k]."""
    at = torch.arange(len(row.ends_S))
    visible = (at[None, :] <= at[:, None]) & (at[:, None] < torch.from_numpy(row.ends_S)[None, :])
    times = query.shape[2] // key.shape[2]
    q, k, v = (
        t[:, 0].double().transpose(0, 1) for t in (query, *(t.repeat_interleave(times, 2) for t in (key, value)))
    )
    logits = (q @ k.transpose(1, 2) * SCALE).masked_fill(~visible, -torch.inf)
    return (torch.softmax(logits, -1) @ v).transpose(0, 1).flatten(1)


def states(
    row: PackedRow, *, heads: int, groups: int, dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> list[torch.Tensor]:
    """Query, key and value; logits of several units, so that a wrong weight would show."""
    generator = torch.Generator().manual_seed(len(row.ends_S))
    shape = (len(row.ends_S), 1)
    return [
        torch.randn(*shape, number, width, generator=generator).mul_(factor).to(dtype)
        for number, factor in ((heads, 3), (groups, 1), (groups, 1))
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    prefix=st.sampled_from((0, 1, 5, 40)),
    blocks=st.integers(0, 4),
    length=st.integers(1, 20),
    tail=st.sampled_from((0, 3)),
    groups=st.sampled_from((1, 2, 4)),
    single=st.booleans(),
)
def test_both_ways_give_dense_attention(
    seed: int, prefix: int, blocks: int, length: int, tail: int, groups: int, single: bool
) -> None:
    if not prefix and not blocks:
        return
    row = row_of(np.random.default_rng(seed), prefix=prefix, blocks=blocks, length=length, tail=tail, single=single)
    inputs = states(row, heads=4, groups=groups)
    ends, real = torch.from_numpy(row.ends_S), row.ends_S > 0
    exact = dense(*inputs, row)[real]
    for apart in (False, True):
        found = tree_attention(*inputs, TreeMask(row, ends, apart=apart), SCALE)
        assert found.shape == (len(row.ends_S), 1, 4 * WIDTH) and torch.isfinite(found).all()
        # fp32 sums of up to 60 weights; outputs up to 4.
        torch.testing.assert_close(found[real, 0].double(), exact, rtol=0, atol=2e-6)


def test_bf16_is_merged_in_fp32():
    row = row_of(np.random.default_rng(0), prefix=48, blocks=4, length=32, tail=0, single=False)
    inputs = states(row, heads=4, groups=2, dtype=torch.bfloat16)
    tree = TreeMask(row, torch.from_numpy(row.ends_S), apart=True, dtype=torch.bfloat16)
    found, exact = tree_attention(*inputs, tree, SCALE)[:, 0], dense(*inputs, row)
    real = row.ends_S > 0
    # A part is rounded by at most half a unit, 2^-7 below 4, and so is the sum; most outputs lie below 1.
    assert exact[real].abs().max() < 4
    assert (found[real].double() - exact[real]).abs().max() < 2**-6
    assert (found[real].double() - exact[real]).abs().mean() < 2**-10


def test_blocks_of_one_path_need_no_mask():
    row = row_of(np.random.default_rng(1), prefix=16, blocks=3, length=16, tail=0, single=True)
    assert TreeMask(row, torch.from_numpy(row.ends_S), apart=True).mask is None
    row.ends_S[16] -= 1  # the first token of a block hides from its last one
    assert TreeMask(row, torch.from_numpy(row.ends_S), apart=True).mask is not None


def test_a_bias_lies_as_torchs_kernels_need_it():
    row = row_of(np.random.default_rng(2), prefix=0, blocks=3, length=9, tail=0, single=False)
    mask = TreeMask(row, torch.from_numpy(row.ends_S), apart=True, dtype=torch.bfloat16).mask
    assert mask is not None and mask.shape == (3, 1, 9, 9) and mask.dtype == torch.bfloat16
    assert all(stride % 16 == 0 for stride in mask.stride()[:3])
