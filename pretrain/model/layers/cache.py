"""Attention with a cache of keys and values, for generating: prompts in, then one token of every sequence at a time.

The objects travel in Megatron's `attention_mask` argument as `TreeMask` does. Sequences that run at once lie along
Megatron's sequence dimension, one token each, so that tensor and sequence parallelism need nothing of their own.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


class KeyValueCache:
    """Keys and values of running sequences for the layers of one rank; memory is taken when a layer is first met.

    Args:
        num_slots: sequences that run at once.
        capacity: tokens of each at most.
    """

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self._layers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, layer: Any, like_SBGD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [slots, G, capacity, D] of a layer, zeros at first."""
        if layer not in self._layers:
            shape = (self.num_slots, like_SBGD.shape[2], self.capacity, like_SBGD.shape[3])
            self._layers[layer] = like_SBGD.new_zeros(shape), like_SBGD.new_zeros(shape)
        return self._layers[layer]


class CachedAttention(abc.ABC):
    """What core attention hands over to when it meets one in `attention_mask`."""

    @abc.abstractmethod
    def attend(
        self, layer: Any, query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """[S, B, N·D]; B is 1. `layer` names the cache's part."""


class Prefill(CachedAttention):
    """A prompt, causal, from its beginning; its keys and values fill a slot.

    Args:
        cache: the cache.
        slot: the sequence's.
        length: tokens of the prompt; what follows in the row is padding.
    """

    def __init__(self, cache: KeyValueCache, slot: int, length: int) -> None:
        self._cache, self._slot, self._length = cache, slot, length

    def attend(
        self, layer: Any, query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Plain causal attention."""
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query_SBND, key_SBGD, value_SBGD))
        for kept, new in zip(self._cache.of(layer, key_SBGD), (k, v), strict=True):
            kept[self._slot, :, : self._length] = new[0, :, : self._length]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out.permute(2, 0, 1, 3).flatten(2)


class Decode(CachedAttention):
    """One new token of every slot, each of which sees its own sequence up to itself.

    Args:
        cache: the cache.
        positions: of the new tokens, by slot; 0 for a slot without a sequence, which then sees itself alone.
        device: where the model lives.
    """

    def __init__(self, cache: KeyValueCache, positions: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        self._slots = torch.arange(len(positions), device=device)
        self._positions_B = torch.tensor(positions, device=device)
        self._longest = max(positions) + 1
        seen = torch.arange(self._longest, device=device) <= self._positions_B[:, None]
        self._mask = seen[:, None, None]

    def attend(
        self, layer: Any, query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The query heads that share a key take the place of query positions: keys are not copied for each."""
        keys, values = self._cache.of(layer, key_SBGD)
        keys[self._slots, :, self._positions_B] = key_SBGD[:, 0]
        values[self._slots, :, self._positions_B] = value_SBGD[:, 0]
        q = query_SBND[:, 0].unflatten(1, (key_SBGD.shape[2], -1))
        k, v = keys[:, :, : self._longest], values[:, :, : self._longest]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, scale=scale)
        return out.flatten(1)[:, None]
