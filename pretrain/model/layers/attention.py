"""Core attention over `scaled_dot_product_attention`: causal or within documents for training, trees for scoring.

Megatron's own local core attention materialises every score and refuses packed sequences. A `TreeMask` travels
in Megatron's `attention_mask` argument untouched, so scoring needs no second model. Context parallelism gathers
keys and values and masks by position (zig-zag split). cuDNN's and flash kernels read each key/value head once for all
its query heads: nothing is copied for grouped queries.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.model.layers.cache import CachedAttention
from pretrain.model.layers.document_mask import hidden_pairs
from pretrain.model.layers.tree import TreeMask, tree_attention

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_LOGITS_AT_A_TIME = 2**23
"""Attention logits that exist at one time where their size is measured: 32 MB."""


class CoreAttention(MegatronModule):
    """Drop-in for Megatron's core attention; no dropout.

    Args: Megatron's own (see `megatron/core/transformer/dot_product_attention.py`).
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self.scale = softmax_scale or 1 / math.sqrt(config.kv_channels)
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.backends = [_BACKENDS[name] for name in config.kernels.attention]

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: TreeMask | CachedAttention | torch.Tensor | None,
        **_: Any,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            query: [S, B, N, D].
            key: [S, B, G, D] with G ≤ N key/value heads.
            value: as key.
            attention_mask: a TreeMask when scoring, a CachedAttention when generating; in training what
                `document_mask` returns, or None for causal attention.

        Returns:
            [S, B, N·D].
        """
        with sdpa_kernel(self.backends, set_priority=True) if self.backends else contextlib.nullcontext():
            if isinstance(attention_mask, TreeMask):
                return tree_attention(query, key, value, attention_mask, self.scale)
            if isinstance(attention_mask, CachedAttention):
                return attention_mask.attend(self, query, key, value, self.scale)
            return self._attend(query, key, value, attention_mask)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if self.context_group is not None:
            key, value, causal = _gather_context(query, key, value, self.context_group)
            mask = causal if mask is None else mask
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out = out.permute(2, 0, 1, 3)
        return out.reshape(out.shape[0], out.shape[1], -1)

    @torch.no_grad()
    def largest_logit(
        self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Finds max |q_i · k_j| · scale over this rank's heads and every visible pair j ≤ i.

        Attention itself never holds its logits; here they exist for a few query positions at a time, in fp32.
        Every rank of a context-parallel group calls it: keys are gathered.

        Args:
            query: [S, B, N, D].
            key: [S, B, G, D].
            attention_mask: as in `forward`, in training.

        Returns:
            fp32 scalar.
        """
        length, batch, heads, _ = query.shape
        query_at = key_at = torch.arange(length, device=query.device)
        if self.context_group is not None:
            key = _GatherSequence.apply(key, self.context_group)
            query_at, key_at = _zigzag_positions(length, self.context_group, query.device)
        heads_per_key = heads // key.shape[2]
        q = query.unflatten(2, (-1, heads_per_key)).permute(1, 2, 0, 3, 4)
        k = key.permute(1, 2, 3, 0).float()
        rows = max(1, _LOGITS_AT_A_TIME // (batch * heads * key.shape[0]))
        largest = torch.zeros((), device=query.device)
        for start in range(0, length, rows):
            seen = start + rows if self.context_group is None else None  # later keys are hidden from all of these
            logits = q[:, :, start : start + rows].flatten(2, 3).float() @ k[..., :seen]
            logits = logits.unflatten(2, (-1, heads_per_key))
            if attention_mask is None:
                hidden = key_at[:seen] > query_at[start : start + rows, None, None]
            else:  # [B, 1, rows, K] -> [B, 1, rows, 1, K]
                hidden = hidden_pairs(attention_mask[:, :, start : start + rows, :seen])[:, :, :, None]
            largest = torch.maximum(largest, logits.masked_fill_(hidden, 0.0).abs_().amax())
        return largest * self.scale

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing to save."""
        return {}


class _GatherSequence(torch.autograd.Function):
    """[S/c, …] on each of c ranks -> [S, …]; backward sums over the ranks and takes this rank's part."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        part = part.contiguous()
        out = part.new_empty(group.size() * part.shape[0], *part.shape[1:])
        dist.all_gather_into_tensor(out, part, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(ctx.group.size())[ctx.group.rank()].contiguous(), None


def _gather_context(
    query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gathered = _GatherSequence.apply(torch.cat([key_SBGD, value_SBGD], -1), group)
    query_at, key_at = _zigzag_positions(query_SBND.shape[0], group, query_SBND.device)
    key, value = gathered.chunk(2, -1)
    return key, value, key_at[None, :] <= query_at[:, None]


def _zigzag_positions(length: int, group: dist.ProcessGroup, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in the whole sequence of this rank's `length` queries, and of the gathered keys."""
    size = group.size()
    positions = [zigzag_positions(length, rank=rank, size=size).to(device) for rank in range(size)]
    return positions[group.rank()], torch.cat(positions)


def zigzag_positions(length: int, *, rank: int, size: int) -> torch.Tensor:
    """Positions in the whole sequence of the `length` tokens of one of `size` context-parallel ranks; int64.

    Of 2 · size chunks rank r holds the r-th and the r-th from the end, so that causal work is even (Megatron's split).
    """
    if size == 1:
        return torch.arange(length)
    chunk = torch.arange(length // 2)
    return torch.cat([rank * (length // 2) + chunk, (2 * size - 1 - rank) * (length // 2) + chunk])
