"""The mask of documents against plain numpy: what attention computes with it, and which logits count."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.model.layers.attention import CoreAttention, zigzag_positions
from pretrain.model.layers.document_mask import document_mask, hidden_pairs

S, B, N, G, D = 24, 2, 4, 2, 8
ENDS_BS = torch.tensor([[5] * 5 + [6] + [24] * 18, [24] * 24], dtype=torch.int32)  # one document of a single token


def visible(b: int, q: int, k: int) -> bool:
    return k <= q < int(ENDS_BS[b, k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_shows_each_token_what_its_document_has_so_far(dtype: torch.dtype) -> None:
    mask = document_mask(ENDS_BS, dtype=dtype)
    expected = [[[[visible(b, q, k) for k in range(S)] for q in range(S)]] for b in range(B)]
    assert mask.dtype == dtype
    assert torch.equal(~hidden_pairs(mask), torch.tensor(expected))
    assert mask[~hidden_pairs(mask)].abs().sum() == 0


@pytest.mark.parametrize("size", [2, 3])
def test_context_parallel_ranks_hold_its_rows_in_their_own_order(size: int) -> None:
    whole = document_mask(ENDS_BS, dtype=torch.float32)
    positions = [zigzag_positions(S // size, rank=rank, size=size) for rank in range(size)]
    for own in positions:
        part = document_mask(ENDS_BS, dtype=torch.float32, query_at=own, key_at=torch.cat(positions))
        assert torch.equal(part, whole[:, :, own][..., torch.cat(positions)])


@pytest.mark.parametrize("kind", ["additive", "bool"])
def test_attention_and_its_largest_logit_are_those_of_visible_pairs_alone(kind: str) -> None:
    kernels = SimpleNamespace(attention=["math"])
    core = CoreAttention(SimpleNamespace(kv_channels=D, context_parallel_size=1, kernels=kernels), 1, None, "self")
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(S, B, heads, D)).astype(np.float32) for heads in (N, G, G))
    k[2, 0] *= 50  # a key of the first document: largest where it is visible, and hidden from the second
    mask = document_mask(ENDS_BS, dtype=torch.float32)
    mask = ~hidden_pairs(mask) if kind == "bool" else mask
    expected, largest = np.zeros((S, B, N, D)), 0.0
    for b in range(B):
        for head in range(N):
            for at in range(S):
                seen = [j for j in range(S) if visible(b, at, j)]
                logits = k[seen, b, head // 2].astype(np.float64) @ q[at, b, head] / np.sqrt(D)
                largest = max(largest, float(np.abs(logits).max()))
                weights = np.exp(logits - logits.max())
                expected[at, b, head] = weights @ v[seen, b, head // 2] / weights.sum()
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    out = core(*tensors, mask).reshape(S, B, N, D)
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)  # fp32 sums of up to 24 values
    found = core.largest_logit(*tensors[:2], mask)
    np.testing.assert_allclose(float(found), largest, rtol=1e-6)
    assert float(core.largest_logit(*tensors[:2])) > 1.01 * largest  # causal alone: the second document sees that key
