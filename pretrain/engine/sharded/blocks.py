"""Where this rank's parameters lie in the whole model, and how their weights are filled from files.

The mapping from a local parameter to the whole model is Megatron's own `sharded_state_dict`; nothing here gathers or
communicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from pretrain.checkpoint.blocks import Block, Chunk, cut, replica_share
from pretrain.engine.sharded import groups

if TYPE_CHECKING:
    from pretrain.checkpoint.source import TensorSource

Blocks = dict[torch.nn.Parameter, list[Block]]


def blocks_of(chunks: Sequence[Any]) -> Blocks:
    """Where each local parameter lies in the whole model, in a fixed order.

    Args:
        chunks: the bare GPTModel chunks of this rank, before any wrapper touches their parameters.

    Returns:
        For each parameter its blocks: several where a local tensor is cut in two globally (gate and up).
    """
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "non_homogeneous_layers": True,  # puts the layer number into the key instead of a prepended axis
    }
    found: Blocks = {}
    for chunk in chunks:
        for entry in nested_values(chunk.sharded_state_dict(metadata=metadata)):
            if not isinstance(entry, ShardedTensor | ShardedTensorFactory):
                continue  # `_extra_state` of TransformerEngine
            parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
            owner = all(part == 0 for part in entry.replica_id[:-1])  # (pipeline copy, tensor copy, data rank)
            at, blocks = 0, []
            for part in parts:
                block = Block(
                    key=part.key,
                    global_shape=tuple(part.global_shape),
                    offset=tuple(part.global_offset),
                    shape=tuple(part.local_shape),
                    local_start=at,
                    is_owner=owner,
                )
                blocks.append(block)
                at += math.prod(part.local_shape)
            assert at == entry.data.numel() and entry.data.is_contiguous(), f"{entry.key} is not laid out as one tensor"
            found[entry.data] = blocks
    parameters = [p for chunk in chunks for p in chunk.parameters()]
    assert len(parameters) == len(found) and all(p in found for p in parameters), "a parameter has no global place"
    return found


@torch.no_grad()
def fill_weights(blocks: Blocks, source: TensorSource) -> None:
    """Fills the weights the model computes with, in place and straight from the files: no gather is needed.

    Args:
        blocks: see `blocks_of`.
        source: a checkpoint of any layout, or a Hugging Face folder.

    Raises:
        CheckpointError: see `TensorSource.fill`; the weights are then partly of one model and partly of another.
    """
    for parameter, parts in blocks.items():
        source.fill(parts, "param", parameter.data.view(-1), 0)


Range = tuple[torch.nn.Parameter, int, dict[str, torch.Tensor]]
"""A parameter, the flat element of it at which a range begins, and 1-D views of the range per kind."""


def chunks_of(blocks: Blocks, ranges: Iterable[Range], *, replicated: bool) -> Iterator[Chunk]:
    """What this rank writes of its state.

    Args:
        blocks: see `blocks_of`.
        ranges: what this rank holds.
        replicated: every replica holds all of it, and they share the work evenly; else each writes what it holds.
    """
    if not replicated:
        for parameter, start, views in ranges:
            yield from cut(blocks[parameter], start, views)
        return
    rank, size = groups.replicas()
    held = {parameter: views for parameter, _, views in ranges}
    owned = [parameter for parameter in blocks if blocks[parameter][0].is_owner]
    for index, first, last in replica_share([p.numel() for p in owned], replica=rank, num_replicas=size):
        part = {kind: view[first:last] for kind, view in held[owned[index]].items()}
        yield from cut(blocks[owned[index]], first, part)
