"""Which training engine, and its options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    name: str = "megatron"
    """`megatron`: Megatron-core's DDP, pipeline schedules and optimizers."""
    distributed_optimizer: bool = True
    """Shard fp32 weights and moments over data-parallel ranks."""
    overlap_grad_reduce: bool = True
    """Reduce gradients bucket by bucket while backward runs."""
    overlap_param_gather: bool = True
    """Gather updated weights bucket by bucket while the next forward runs (distributed optimizer only)."""
    bucket_size: int | None = None
    """Parameters per communication bucket; null is Megatron-core's own choice."""
    recompute: str = "none"
    """Activations computed again in backward to save memory: `none`, `full` (each layer is kept as its input alone) or
    `selective` (core attention; with fused attention there are no scores to drop, so it saves next to nothing)."""
    transformer_engine: bool = False
    """Linear layers and norms of TransformerEngine, which must be installed, instead of torch's; needs a GPU. Attention
    stays ours: scoring gives it token trees, which TransformerEngine's does not take."""
    timeout_minutes: int = 30
    """A collective that waits longer than this ends the job with an error."""
