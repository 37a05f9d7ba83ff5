"""Which implementation computes each part of a step. They agree to rounding; the fast ones are chosen on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"


@dataclass(kw_only=True, slots=True)
class KernelsConfig:
    attention: str = AUTO
    """`cudnn`, `flash`, `efficient` or `math`: the first choice of `scaled_dot_product_attention`, the others following
    where it cannot; `auto`: cuDNN's on compute capability 9.0, flash on other GPUs, torch's own choice on a CPU."""
    layers: str = AUTO
    """`plain`: Megatron's own layer; `fused`: ours, in which RoPE, norms with their residual, and SwiGLU are one
    function each that keeps its input alone for backward; `auto`: fused on a GPU."""
    compile: bool | None = None
    """torch.compile makes one kernel of each of those functions, and of the loss's and the optimizer's; null: on a
    GPU."""
    loss: str = AUTO
    """`whole`: logits of a whole microbatch, in fp32; `chunked`: output layer and cross entropy some tokens at a time,
    so that fp32 logits of a microbatch never exist; `auto`: chunked on a GPU."""
    weight_gradients: str = AUTO
    """`plain`: products in the weight's format, then added to the fp32 sum; `accumulated`: products straight into the
    fp32 sum; `auto`: accumulated for bf16 on a GPU. Megatron only."""
    optimizer: str = AUTO
    """`plain`: torch's AdamW, after a pass that clips and before one that rounds to bf16; `fused`: all of it in one
    pass, without the host waiting for the norm; `auto`: fused on a GPU. Megatron only."""
    cuda_graphs: bool = False
    """Replay each layer as a CUDA graph (Megatron's), where the host is slower at launching kernels than the GPU at
    running them: small models, short microbatches. Fused layers under Megatron, data parallel only."""


CHOICES = {
    "kernels.attention": (AUTO, "cudnn", "flash", "efficient", "math"),
    "kernels.layers": (AUTO, "plain", "fused"),
    "kernels.loss": (AUTO, "whole", "chunked"),
    "kernels.weight_gradients": (AUTO, "plain", "accumulated"),
    "kernels.optimizer": (AUTO, "plain", "fused"),
}
"""Allowed values."""
