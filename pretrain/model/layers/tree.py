"""Attention in scoring: of packed rows, whose blocks see a shared prefix but not each other.

A `TreeMask` travels in Megatron's `attention_mask` argument untouched, so that scoring needs no second model. There are
two ways to the same function. On a CPU each block's keys stand behind a copy of the prefix's, in one masked attention:
below 1,000 tokens nothing else was faster. On a GPU those copies (blocks times prefix, in every layer) cost more than
the products, and the mask keeps the fast kernels away: there all blocks see the prefix in one attention without a mask,
see themselves in another, and the two are merged by their log-sums of exponentials.

cuDNN's attention, the fastest for training, has no part in merging: it makes a plan for each new shape, and nearly
every row with a prefix has a shape of its own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

from pretrain.engine.base import PackedRow
from pretrain.model.layers.compiled import fast

_aten = torch.ops.aten
_BIAS_ALIGNMENT = 16
"""Elements between rows of a bias must be a multiple of it (`preprocess_mask` of torch's attention.cpp)."""


class TreeMask:
    """Attention pattern of one packed row: key k is visible to query q when k ≤ q < end[k].

    The mask is kept per block, not as a dense [S, S]: on CPU the dense form costs about 35 µs per token and layer,
    blocks 1 to 4. It is what kernels add to their logits (0 or -inf): of booleans they would make that anew in every
    layer, a tenth of attention's time on CPU with a prefix of 300 to 1,200 tokens.

    Args:
        row: the packed row.
        ends_S: its `ends_S` where the model lives; any integers.
        dtype: of activations.
        apart: whether prefix and blocks are attended to apart; None: where that is faster, on anything but a CPU.
        compiled: whether the merge is a compiled function.

    Attributes:
        mask: None if no block has more than one path through it. Apart [B, 1, T, T] of `dtype`, else fp32
            [B, 1, T, prefix + T].
    """

    def __init__(
        self,
        row: PackedRow,
        ends_S: torch.Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        apart: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.prefix, self.num_blocks, self.block_length = row.prefix, row.num_blocks, row.block_length
        self.stop = row.prefix + row.num_blocks * row.block_length
        self.apart = ends_S.device.type != "cpu" if apart is None else apart
        self.compiled = compiled
        self.mask: torch.Tensor | None = None
        if not row.num_blocks or (self.apart and _has_single_paths(row)):
            return
        visible = self._visible(ends_S)
        if self.apart:
            padded = -(-row.block_length // _BIAS_ALIGNMENT) * _BIAS_ALIGNMENT
            bias = torch.zeros(*visible.shape[:3], padded, dtype=dtype, device=ends_S.device)
            self.mask = bias[..., : row.block_length].masked_fill_(~visible, -torch.inf)
            return
        if row.prefix:
            sees_prefix = visible.new_ones(row.num_blocks, 1, row.block_length, row.prefix)
            visible = torch.cat([sees_prefix, visible], -1)
        self.mask = torch.zeros(visible.shape, device=ends_S.device).masked_fill_(~visible, -torch.inf)

    def _visible(self, ends_S: torch.Tensor) -> torch.Tensor:
        """Bool [B, 1, T, T], queries by keys of one block."""
        blocks, length = self.num_blocks, self.block_length
        ends = ends_S[self.prefix : self.stop].view(blocks, length) - self.prefix
        inside = torch.arange(length, device=ends_S.device)
        query = torch.arange(blocks, device=ends_S.device)[:, None] * length + inside
        causal = inside[None, None, :] <= inside[None, :, None]
        visible = causal & (query[:, :, None] < ends[:, None, :])
        visible |= torch.eye(
            length, dtype=torch.bool, device=ends_S.device
        )  # padding sees itself: no empty softmax row
        return visible[:, None]


def _has_single_paths(row: PackedRow) -> bool:
    """Whether each block is one text and padding behind it: causal attention gives the same to all but padding."""
    stop = row.prefix + row.num_blocks * row.block_length
    ends = row.ends_S[row.prefix : stop].reshape(row.num_blocks, row.block_length)
    starts = row.prefix + np.arange(row.num_blocks)[:, None] * row.block_length
    num_real = (ends > 0).sum(1, keepdims=True)
    return bool((np.where(ends > 0, ends, starts + num_real) == starts + num_real).all())


def tree_attention(
    query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, tree: TreeMask, scale: float
) -> torch.Tensor:
    """Attention of one layer over one packed row.

    Args:
        query_SBND: [S, 1, N, D].
        key_SBGD: [S, 1, G, D] with G ≤ N key/value heads.
        value_SBGD: as key.
        tree: what sees what.
        scale: factor of the logits.

    Returns:
        [S, 1, N·D]; zeros behind the last block.
    """
    way = _apart if tree.apart else _together
    return way(query_SBND[:, 0], key_SBGD[:, 0], value_SBGD[:, 0], tree, scale).flatten(1)[:, None]


def _together(
    q_SND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, tree: TreeMask, scale: float
) -> torch.Tensor:
    """[S, N, D]; each block's keys behind a copy of the prefix's."""
    prefix, stop = tree.prefix, tree.stop
    grouped = q_SND.shape[1] != k_SGD.shape[1]
    out = torch.zeros_like(q_SND)
    if prefix:
        q, k, v = (_whole(t[:prefix]) for t in (q_SND, k_SGD, v_SGD))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        out[:prefix] = o[0].transpose(0, 1)
    if tree.num_blocks:
        q, keys, values = (_by_block(t[prefix:stop], tree) for t in (q_SND, k_SGD, v_SGD))
        if prefix:
            keys = torch.cat([k.expand(tree.num_blocks, -1, -1, -1), keys], 2)
            values = torch.cat([v.expand(tree.num_blocks, -1, -1, -1), values], 2)
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=tree.mask, scale=scale, enable_gqa=grouped)
        out[prefix:stop] = o.transpose(1, 2).flatten(0, 1)
    return out


def _apart(q_SND: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, tree: TreeMask, scale: float) -> torch.Tensor:
    """[S, N, D]; nothing is copied for each block."""
    prefix, stop = tree.prefix, tree.stop
    parts = []
    if prefix:
        q, k, v = (_whole(t[:prefix]) for t in (q_SND, k_SGD, v_SGD))
        parts.append(_attend(q, k, v, scale, causal=True)[0][0].transpose(0, 1))
    if tree.num_blocks:
        own_q, own_k, own_v = (_by_block(t[prefix:stop], tree) for t in (q_SND, k_SGD, v_SGD))
        if not prefix and tree.mask is None:  # validation: all rows have one shape, for which cuDNN's plan is worth it
            grouped = q_SND.shape[1] != k_SGD.shape[1]
            o = F.scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, scale=scale, enable_gqa=grouped)
        else:
            o, lse = _attend(own_q, own_k, own_v, scale, bias=tree.mask, causal=tree.mask is None)
        o = o.transpose(1, 2).flatten(0, 1)
        if prefix:
            before, before_lse = _attend(_whole(q_SND[prefix:stop]), k, v, scale)
            of_own, of_before = lse.transpose(1, 2).flatten(0, 1), before_lse[0].transpose(0, 1)
            o = fast(_merge, tree.compiled)(o, of_own, before[0].transpose(0, 1), of_before)
        parts.append(o)
    if stop < len(q_SND):
        parts.append(torch.zeros_like(q_SND[stop:]))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _merge(
    own_TND: torch.Tensor, own_lse_TN: torch.Tensor, before_TND: torch.Tensor, before_lse_TN: torch.Tensor
) -> torch.Tensor:
    """Attention over two sets of keys, from attention over each of them and the log-sums of its exponentials (fp32)."""
    share = torch.sigmoid(before_lse_TN - own_lse_TN)[..., None]
    return torch.lerp(own_TND.float(), before_TND.float(), share).to(own_TND.dtype)


def _whole(t_SND: torch.Tensor) -> torch.Tensor:
    """[1, N, S, D]."""
    return t_SND.transpose(0, 1)[None]


def _by_block(t_SND: torch.Tensor, tree: TreeMask) -> torch.Tensor:
    """[B, N, T, D]."""
    return t_SND.unflatten(0, (tree.num_blocks, tree.block_length)).transpose(1, 2)


def _attend(
    q_BNQD: torch.Tensor,
    k_BGKD: torch.Tensor,
    v_BGKD: torch.Tensor,
    scale: float,
    *,
    bias: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [B, N, Q, D], and fp32 [B, N, Q], the natural logarithm of its sum of exponentials.

    torch's public attention keeps the latter to itself; of the kernels below it, flash attention takes no bias.
    """
    queries, width = q_BNQD.shape[2:]
    grouped = q_BNQD.shape[1] != k_BGKD.shape[1]
    params = SDPAParams(q_BNQD, k_BGKD, v_BGKD, bias, 0.0, causal, grouped)
    if width % 8 == 0 and can_use_flash_attention(params):
        out, lse = _aten._scaled_dot_product_flash_attention(q_BNQD, k_BGKD, v_BGKD, 0.0, causal, scale=scale)[:2]
        return out, lse[..., :queries]
    if grouped:
        times = q_BNQD.shape[1] // k_BGKD.shape[1]
        k_BGKD, v_BGKD = (t.repeat_interleave(times, 1) for t in (k_BGKD, v_BGKD))
    if bias is not None:
        bias = bias.expand(-1, q_BNQD.shape[1], -1, -1)
    if can_use_efficient_attention(SDPAParams(q_BNQD, k_BGKD, v_BGKD, bias, 0.0, causal, False)):
        out, lse = _aten._scaled_dot_product_efficient_attention(
            q_BNQD, k_BGKD, v_BGKD, bias, True, 0.0, causal, scale=scale
        )[:2]
        return out, lse[..., :queries]  # it writes whole tiles of 32
    logits = (q_BNQD.float() @ k_BGKD.float().transpose(-1, -2)) * scale
    if bias is not None:
        logits += bias
    if causal:
        logits += torch.full_like(logits[0, 0], -torch.inf).triu_(1)
    lse = torch.logsumexp(logits, -1)
    return ((logits - lse[..., None]).exp() @ v_BGKD.float()).to(q_BNQD.dtype), lse
