"""Initial weights, the same in every layout, engine and world size.

Megatron draws weights per rank, so another layout starts another model. Here a weight is a function of
(seed, parameter name, row), which is what lets parity between layouts be tested exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch

from pretrain.checkpoint.blocks import Block
from pretrain.config.model import ModelConfig

_ROWS = 256
"""Rows drawn from one generator: a rank draws only the row groups it holds."""
_INTO_RESIDUAL = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@torch.no_grad()
def initialize(blocks: Mapping[torch.nn.Parameter, Sequence[Block]], model: ModelConfig, *, seed: int) -> None:
    """Initial weights: a function of (seed, parameter name, row), so that every layout starts the same.

    Norms are one, everything else N(0, init_std²), as in Hugging Face's LLaMA; with `init_depth_scaled` the two
    matrices of a layer that end in the residual stream N(0, init_std² / (2 num_layers)), as in Megatron and GPT-2.

    Args:
        blocks: where each local parameter lies in the whole model.
        model: standard deviations.
        seed: the run's seed.
    """
    scaled = model.init_std / math.sqrt(2 * model.num_layers) if model.init_depth_scaled else model.init_std
    for parameter, parts in blocks.items():
        flat = parameter.data.view(-1)
        for block in parts:
            local = flat[block.local_start : block.local_start + block.numel].view(block.shape)
            if len(block.shape) == 1:
                local.fill_(1.0)
            else:
                std = scaled if block.key.endswith(_INTO_RESIDUAL) else model.init_std
                _fill_normal(local, block, seed=seed, std=std)


def _fill_normal(local: torch.Tensor, block: Block, *, seed: int, std: float) -> None:
    first, last = block.offset[0], block.offset[0] + block.shape[0]
    left, right = block.offset[1], block.offset[1] + block.shape[1]
    for group in range(first // _ROWS, -(-last // _ROWS)):
        start = group * _ROWS
        rows = min(_ROWS, block.global_shape[0] - start)
        digest = hashlib.blake2b(f"{seed}/{block.key}/{group}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn = torch.randn(rows, block.global_shape[1], generator=generator) * std
        a, z = max(first, start), min(last, start + rows)
        local[a - first : z - first].copy_(drawn[a - start : z - start, left:right])
