"""Training on several documents in one window, none of which sees another: the mask, built once per microbatch.

It travels in Megatron's `attention_mask` argument through all layers, stages and recomputed activations, which only
let tensors pass. RoPE needs no reset at a document's beginning: a logit depends on the distance of query and key
alone, so a document gives the same numbers wherever in the window it stands.
"""

from __future__ import annotations

import torch


def document_mask(
    ends_BS: torch.Tensor,
    *,
    dtype: torch.dtype,
    query_at: torch.Tensor | None = None,
    key_at: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mask of a microbatch: key k is visible to query q when k <= q < ends[k].

    Args:
        ends_BS: integers [B, S], see `Batch.ends_MBS`.
        dtype: of activations.
        query_at: int64 [Q], position of each query of this rank; None: 0 to S - 1.
        key_at: int64 [K], position of each key as attention has them; None: 0 to S - 1.

    Returns:
        [B, 1, Q, K]: bool, true where visible; on a CPU 0 or -inf of `dtype`, which attention there would make of
        booleans anew in every layer.
    """
    positions = torch.arange(ends_BS.shape[1], device=ends_BS.device)
    query_at = positions if query_at is None else query_at
    key_at = positions if key_at is None else key_at
    visible = (key_at <= query_at[:, None]) & (query_at[:, None] < ends_BS[:, None, key_at])
    visible = visible[:, None]
    if ends_BS.device.type != "cpu":
        return visible
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)


def hidden_pairs(mask: torch.Tensor) -> torch.Tensor:
    """Bool, true where a `document_mask` hides the key from the query; of the mask's shape."""
    return ~mask if mask.dtype == torch.bool else mask.isneginf()
