"""Rotary position embedding as a table of cosines and sines, made once instead of in every layer."""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding


class RotaryTable(RotaryEmbedding):
    """Megatron's rotary embedding, whose angles stand twice side by side; here cosines stand beside sines.

    In the same shape, so that everything that passes angles on (pipelines, context parallelism, recomputed
    activations, scoring) passes these on. Made from an existing one by exchanging its class.
    """

    def get_emb(self, max_seq_len: int, offset: int = 0) -> torch.Tensor:
        """fp32 [max_seq_len, 1, 1, D]: D / 2 cosines, then D / 2 sines."""
        angles = super().get_emb(max_seq_len, offset)[..., : self.inv_freq.numel()]
        return torch.cat([angles.cos(), angles.sin()], -1)
