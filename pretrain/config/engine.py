"""Which training engine, and its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    name: str = "megatron"
    """`megatron`: Megatron-core's DDP, pipeline schedules and optimizers; `deepspeed`: ZeRO, with tensor parallelism.
    Model, data, schedule, checkpoint and probes are the same; a run may go on under the other one."""
    distributed_optimizer: bool = True
    """Shard fp32 weights and moments over data-parallel ranks."""
    overlap_grad_reduce: bool = True
    """Reduce gradients bucket by bucket while backward runs (DeepSpeed: `overlap_comm`, stages 1 to 3)."""
    overlap_param_gather: bool = True
    """Gather updated weights bucket by bucket while the next forward runs (distributed optimizer only)."""
    bucket_size: int | None = None
    """Parameters per communication bucket; null is the engine's own choice."""
    recompute: str = "none"
    """Activations computed again in backward to save memory: `none`, `full` (each layer is kept as its input alone) or
    `selective`: in fused layers (`kernels.layers`) norms and SwiGLU, which are cheap and three tenths of what a layer
    keeps; in Megatron's own core attention, which saves next to nothing where no scores are kept."""
    transformer_engine: bool = False
    """Linear layers and norms of TransformerEngine, which must be installed, instead of torch's; needs a GPU. Attention
    stays ours: scoring gives it token trees, which TransformerEngine's does not take."""
    zero_stage: int | None = None
    """DeepSpeed: what data-parallel ranks share out. 0: nothing, 1: moments and fp32 weights, 2: gradients too, 3: the
    weights too, which are gathered layer by layer. Null for Megatron. At every stage a rank first builds its
    tensor-parallel part of the weights whole: for a moment that must fit."""
    offload_optimizer: str = "none"
    """DeepSpeed, stages 1 to 3: `cpu` keeps fp32 weights and moments in host memory and updates them there."""
    offload_parameters: str = "none"
    """DeepSpeed, stage 3: `cpu` keeps this rank's part of the weights in host memory."""
    adam: str = "auto"
    """DeepSpeed: implementation of AdamW. `torch`; `deepspeed`: FusedAdam, or CPUAdam where the optimizer is offloaded,
    compiled on first use; `auto`: torch on CPU, DeepSpeed's on a GPU if it can be built."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed: further keys of its configuration, as `engine.deepspeed.zero_optimization.reduce_scatter=false`. Keys
    that another option decides are refused. What DeepSpeed was given is in the run's folder, as `deepspeed.json`."""
    timeout_minutes: int = 30
    """A collective that waits longer than this ends the job with an error."""
