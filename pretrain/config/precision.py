"""Number formats of compute; master weights, moments and gradient accumulation are always fp32."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    compute: str = "bf16"
    """`bf16` (fp32 master weights and gradient accumulation) or `fp32`."""
    tf32: bool = False
    """Allow TF32 matrix products in fp32 compute on GPUs that have it."""
    fp8: bool = False
    """Multiply the Linear layers' matrices in fp8, each tensor scaled by its largest magnitude (bf16 compute, compute
    capability 8.9 or newer). Norms, attention, output layer, probes and all state stay as they are. At every save the
    loss is compared with bf16's on the same tokens; a run whose fp8 loss is off by more than `fp8_tolerance` ends."""
    fp8_tolerance: float = 0.02
    """Largest difference of the fp8 loss from the bf16 loss, in nats per token."""
