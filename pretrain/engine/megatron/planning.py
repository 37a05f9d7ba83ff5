"""What Megatron-core's DDP and optimizers take of a rank's memory; see `pretrain.engine.footprint`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pretrain.config.engine import EngineConfig
from pretrain.config.run import RunConfig
from pretrain.engine.footprint import FP32, MOMENTS, Footprint, compute_bytes, stage_elements
from pretrain.engine.kernels import planned
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec


def footprint(config: RunConfig, layout: ParallelLayout, spec: ModelSpec, *, stage: int) -> Footprint:
    """Weights and fp32 sums of gradients whole; moments and fp32 weights shared out by the distributed optimizer."""
    engine, bf16 = config.engine, config.precision.compute == "bf16"
    parameters = stage_elements(spec, layout, stage=stage, tensor=layout.tensor)
    ranks = layout.data * layout.context if engine.distributed_optimizer else 1
    share, fused = -(-parameters // ranks), planned(config).optimizer == "fused"
    return Footprint(
        weights=compute_bytes(config) * parameters,
        gradients=FP32 * parameters,
        optimizer=(MOMENTS + FP32 * bf16) * share,
        buffers=0,
        # torch's AdamW takes the root of all second moments at once. TransformerEngine brings one of its own.
        update=0 if fused or engine.transformer_engine else FP32 * share,
        gradients_follow_activations=False,
        optimizer_ranks=ranks,
        shared="optimizer" if engine.distributed_optimizer else "none",
        optimizer_on_host=False,
        fused_update=fused,
    )


def variants(own: EngineConfig | None) -> Iterator[EngineConfig]:
    """With the distributed optimizer."""
    yield EngineConfig() if own is None else dataclasses.replace(own, distributed_optimizer=True)


def group(engine: EngineConfig) -> str:
    """The only one there is."""
    return "megatron"


def as_group(engine: EngineConfig) -> EngineConfig:
    """`configs/engine/megatron.yaml`."""
    return EngineConfig()


def sharing(engine: EngineConfig) -> str:
    """Who shares state out, in words."""
    return "Megatron's distributed optimizer" if engine.distributed_optimizer else "Megatron, nothing shared"
