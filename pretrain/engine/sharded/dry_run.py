"""One rank's part of the model, built without its job: no peers, no weights in memory, no GPU.

Megatron-core makes the modules of a real run, on torch's fake process group, whose collectives do nothing, and on
the meta device, where tensors have shapes and no elements. What a rank of thousands holds is then read off, and held
against arithmetic from the sizes alone. Nothing here trains or communicates.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from pretrain.checkpoint.blocks import Block
from pretrain.checkpoint.coverage import Piece, coverage_problem
from pretrain.config.run import RunConfig
from pretrain.engine.device import prepare_device
from pretrain.engine.footprint import stage_elements
from pretrain.engine.layout import ParallelLayout
from pretrain.engine.sharded import groups
from pretrain.engine.sharded.blocks import blocks_of
from pretrain.errors import EngineError
from pretrain.model.gpt import build_chunks, transformer_config
from pretrain.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one rank holds of the model.

    Attributes:
        rank: global rank.
        num_parameters: elements of its parameters, copies of other ranks' included.
        weight_bytes: the same in the format the model computes with.
        blocks: where they lie in the whole model.
    """

    rank: int
    num_parameters: int
    weight_bytes: int
    blocks: tuple[Block, ...]


def build_shard(config: RunConfig, spec: ModelSpec, *, rank: int, world_size: int) -> Shard:
    """Builds the chunks of one rank on the meta device and says what they hold; deterministic.

    Leaves no process group behind, so that one process can build one rank after another. Seeds the process's
    generators.

    Args:
        config: the resolved configuration; checked for this world size.
        spec: the model's derived sizes.
        rank: global rank, 0 … world_size - 1.
        world_size: processes of the run.
    """
    # Registers the backend as it is imported. Private to torch, but what its own tools for large layouts stand on.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert not dist.is_initialized(), "a dry run joins a fake job: this process is in a job already"
    prepare_device()
    excepthook = sys.excepthook  # joining a job wraps it to name the rank, once more for each job
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        groups.start(config)
        # TransformerEngine's layers hold the same parameters, but need a GPU to be built.
        plain = dataclasses.replace(config, engine=dataclasses.replace(config.engine, transformer_engine=False))
        with _OnMeta():
            chunks = build_chunks(plain, spec, transformer_config(plain, spec))
        parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
        assert all(parameter.is_meta for parameter in parameters), "a parameter was given memory"
        return Shard(
            rank=rank,
            num_parameters=sum(parameter.numel() for parameter in parameters),
            weight_bytes=sum(parameter.nbytes for parameter in parameters),
            blocks=tuple(block for blocks in blocks_of(chunks).values() for block in blocks),
        )
    finally:
        groups.stop()
        dist.destroy_process_group()
        sys.excepthook = excepthook


def check_shard(shard: Shard, spec: ModelSpec, layout: ParallelLayout) -> None:
    """Holds a shard against the arithmetic, and the arithmetic of all stages against the whole model.

    Raises:
        EngineError: they differ: Megatron-core builds another model than plans and checkpoints count with.
    """
    stage = layout.coordinates(shard.rank).pipeline
    shapes = {block.key: block.global_shape for block in shard.blocks}
    copied = spec.padded_vocab_size * spec.hidden_size if spec.tie_embeddings and layout.pipeline > 1 else 0
    stages = [stage_elements(spec, layout, stage=number, tensor=1) for number in range(layout.pipeline)]
    for what, found, expected in (
        ("parameters", shard.num_parameters, stage_elements(spec, layout, stage=stage, tensor=layout.tensor)),
        ("elements of whole tensors", sum(math.prod(shape) for shape in shapes.values()), stages[stage]),
        ("elements over all stages", sum(stages) - copied, spec.num_parameters + padding_parameters(spec)),
    ):
        if found != expected:
            raise EngineError(f"Rank {shard.rank} has {found:,} {what}; by the sizes of the model it is {expected:,}.")


def covers_model(shards: Sequence[Shard], layout: ParallelLayout) -> bool:
    """Whether there is a shard of each place in tensor x pipeline; together they must then be the model.

    Raises:
        EngineError: an element is held by two places, or by none.
    """
    places = {(at.tensor, at.pipeline): shard for shard in shards for at in [layout.coordinates(shard.rank)]}
    if len(places) < layout.tensor * layout.pipeline:
        return False
    blocks = [block for shard in places.values() for block in shard.blocks]
    problem = coverage_problem(
        {block.key: block.global_shape for block in blocks},
        [Piece(block.key, block.offset, block.shape, 0, block.numel) for block in blocks if block.is_owner],
    )
    if problem is not None:
        raise EngineError(f"The shards of all ranks are not the model: {problem}.")
    return True


def padding_parameters(spec: ModelSpec) -> int:
    """Elements of the rows that fill the vocabulary up: in memory and checkpoints, not in exports."""
    return (spec.padded_vocab_size - spec.vocab_size) * spec.hidden_size * (1 if spec.tie_embeddings else 2)


class _OnMeta(TorchFunctionMode):
    """Sends every tensor that names a device to meta.

    Megatron-core 0.16 reads `init_model_with_meta_device` in its TransformerEngine layers only, and its local layers
    name `torch.cuda.current_device()`, which `with torch.device("meta")` does not override.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if named.get("device") is not None:
            named["device"] = torch.device("meta")
        return func(*args, **named)
