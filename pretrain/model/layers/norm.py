"""RMSNorm that knows sequence parallelism; Megatron's own local norm refuses it.

In Megatron, a parameter that is replicated over tensor-parallel ranks but sees only part of the sequence is
marked `sequence_parallel`, and its gradient is summed over the group.
"""

from __future__ import annotations

from typing import Any

import torch

from pretrain.model.layers.elementwise import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm (Zhang and Sennrich 2019) with Megatron's constructor.

    Args:
        config: Megatron's TransformerConfig.
        hidden_size: width of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, device=torch.cuda.current_device(), dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.epsilon, self.compiled = eps, config.kernels.compile


class FusedRMSNorm(RMSNorm):
    """The same for `FusedLayer`: of x or of residual + x, in one pass; returns what was normed too."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """x, or the sum; and its norm."""
        return rms_norm(x, self.weight, residual, epsilon=self.epsilon, compiled=self.compiled)


class FinalRMSNorm(RMSNorm):
    """The same behind the last layer: the norm alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of x."""
        return rms_norm(x, self.weight, None, epsilon=self.epsilon, compiled=self.compiled)[1]
