"""AdamW, gradient clipping, and what is added to the loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay, multiplied by the learning rate."""
    decay: str = "all"
    """`all`: every parameter (Amber, OpenLLaMA); `matrices`: not norms and biases."""
    grad_clip: float = 1.0
    """Largest global gradient norm over the whole model; 0 does not clip."""
    z_loss: float = 0.0
    """Coefficient of log(Z)² per token in the loss, Z the sum of exp(logits); PaLM has 1e-4, 0 is off."""
