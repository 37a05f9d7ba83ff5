"""Number formats of compute; master weights, moments and gradient accumulation are always fp32."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    compute: str = "bf16"
    """`bf16` (fp32 master weights and gradient accumulation) or `fp32`."""
    tf32: bool = False
    """Allow TF32 matrix products in fp32 compute on GPUs that have it."""
