"""A packed row where the model lives: what its passes need, moved at once and without a wait of the host.

Every number about a row is known on the host. Moved one by one from ordinary memory, each would make the host wait
until the GPU has done all that it was given before, so that the host never works ahead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pretrain.engine.base import PackedRow
from pretrain.engine.device import to_device
from pretrain.model.layers.cache import CachedAttention
from pretrain.model.layers.tree import TreeMask


@dataclass(frozen=True, slots=True)
class StagedRow:
    """What the layers need of a row.

    Attributes:
        tokens_1S: int64 token ids.
        rope_S11D: rotary embeddings of its positions.
        mask: what sees what.
    """

    tokens_1S: torch.Tensor
    rope_S11D: torch.Tensor
    mask: TreeMask | CachedAttention


def sequence_parts(config: Any) -> int:
    """Ranks that share the tokens of a row: the tensor-parallel ones with sequence parallelism, otherwise one.

    Args:
        config: the model's.
    """
    parts: int = config.tensor_model_parallel_size if config.sequence_parallel else 1
    return parts


def divisible(row: PackedRow, parts: int) -> PackedRow:
    """The row with as much padding behind it as it takes to be cut into equal parts.

    This is where the layout is known. Rows come without it, so that one compiled plan serves every layout.
    """
    missing = -len(row.tokens_S) % parts
    if not missing:
        return row
    tokens_S, positions_S, ends_S = (np.pad(of, (0, missing)) for of in (row.tokens_S, row.positions_S, row.ends_S))
    return dataclasses.replace(row, tokens_S=tokens_S, positions_S=positions_S, ends_S=ends_S)


def stage(row: PackedRow, rope_table: torch.Tensor, config: Any, attention: CachedAttention | None = None) -> StagedRow:
    """Moves a row to the device of the rotary embeddings.

    Args:
        row: the row.
        rope_table: rotary embeddings of every position [positions, 1, 1, D].
        config: the model's.
        attention: what sees what when generating; None: the row's tree.
    """
    tokens, positions, ends = move([row.tokens_S, row.positions_S, row.ends_S], rope_table.device)
    mask = attention or TreeMask(row, ends, dtype=config.params_dtype, compiled=config.kernels.compile)
    return StagedRow(tokens[None], rope_table[positions], mask)


def move(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Integer arrays as int64 tensors, in one transfer."""
    flat = np.concatenate([np.asarray(array, np.int64) for array in arrays])
    return list(to_device(flat, device).split([len(array) for array in arrays]))
