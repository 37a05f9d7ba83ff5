"""What DeepSpeed's ZeRO takes of a rank's memory; see `pretrain.engine.footprint`.

The parts are those of Rajbhandari et al. 2020 (arXiv 1910.02054), table 1. A stage above 0 keeps fp32 weights of its
own even where the model computes in fp32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pretrain.config.engine import EngineConfig
from pretrain.config.run import RunConfig
from pretrain.engine.footprint import FP32, MOMENTS, SHARED, Footprint, compute_bytes, stage_elements
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec

_BUCKET = 500_000_000
"""Elements of `reduce_bucket_size`, and _PREFETCH of `stage3_prefetch_bucket_size`: DeepSpeed's own choices."""
_PREFETCH = 50_000_000
_LIVE = 1_000_000_000
"""Its `stage3_max_reuse_distance`: weights that are needed again within so many elements stay whole. Around the loss
these are half as many, on their way forward and back."""


def footprint(config: RunConfig, layout: ParallelLayout, spec: ModelSpec, *, stage: int) -> Footprint:
    """State as the ZeRO stage shares it out; `stage` is the pipeline's, of which there is one here."""
    engine, zero, bf16 = config.engine, config.engine.zero_stage or 0, config.precision.compute == "bf16"
    parameters = stage_elements(spec, layout, stage=stage, tensor=layout.tensor)
    replicas = layout.data * layout.context
    ranks = replicas if zero > 0 else 1
    weights = compute_bytes(config) * -(-parameters // (replicas if zero == 3 else 1))
    optimizer = (MOMENTS + FP32 * (bf16 or zero > 0)) * -(-parameters // ranks)
    on_host = engine.offload_optimizer != "none"
    return Footprint(
        weights=0 if engine.offload_parameters != "none" else weights,
        gradients=FP32 * -(-parameters // (replicas if zero >= 2 else 1)),
        optimizer=0 if on_host else optimizer,
        buffers=buffer_bytes(config, layout, spec),
        update=0,
        # Below stage 3 gradients are held for the rest of a step only.
        gradients_follow_activations=zero < 3 and layout.num_microbatches == 1,
        optimizer_ranks=ranks,
        shared=SHARED[zero],
        optimizer_on_host=on_host,
        fused_update=engine.adam != "torch" and (config.cluster.device is not None or engine.adam == "deepspeed"),
    )


def buffer_bytes(config: RunConfig, layout: ParallelLayout, spec: ModelSpec) -> int:
    """Buffers of communication, which DeepSpeed allocates whole, however small the model.

    Stages 1 and 2 have one for gradients, in fp32 and in the format of compute, and a second where reduction overlaps.
    Stage 3 has one, and the weights that are whole at a time: of a small model all of them.
    """
    engine, size, zero = config.engine, compute_bytes(config), config.engine.zero_stage or 0
    if not zero:
        return 0
    bucket = _BUCKET if engine.bucket_size is None else engine.bucket_size
    if zero < 3:
        return bucket * (FP32 if zero == 1 else size) * (2 if engine.overlap_grad_reduce else 1)
    whole = stage_elements(spec, layout, stage=0, tensor=layout.tensor)
    table = spec.padded_vocab_size * spec.hidden_size // layout.tensor
    return bucket * FP32 + size * min(whole, _LIVE // 2 + _PREFETCH + table)


def variants(own: EngineConfig | None) -> Iterator[EngineConfig]:
    """Stages 1 to 3."""
    for stage in (1, 2, 3):
        if own is None:
            yield as_group(EngineConfig(zero_stage=stage))
        else:
            yield dataclasses.replace(own, zero_stage=stage, overlap_grad_reduce=True)


def group(engine: EngineConfig) -> str:
    """One for each stage."""
    return f"deepspeed_zero{engine.zero_stage or 0}"


def as_group(engine: EngineConfig) -> EngineConfig:
    """`configs/engine/deepspeed_zero….yaml`."""
    stage = engine.zero_stage or 0
    return EngineConfig(
        name="deepspeed",
        zero_stage=stage,
        distributed_optimizer=False,
        overlap_grad_reduce=stage > 0,
        overlap_param_gather=False,
    )


def sharing(engine: EngineConfig) -> str:
    """Who shares state out, in words."""
    return f"DeepSpeed ZeRO-{engine.zero_stage or 0}"
