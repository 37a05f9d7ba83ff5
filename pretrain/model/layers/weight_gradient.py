"""Gradients of weights summed straight into fp32, without a bf16 product in between.

Autograd's way writes the product in the weight's own format, then adds it to Megatron's fp32 buffer: a rounding to
bf16 for every microbatch, and 10 bytes per parameter of traffic. Megatron can have Apex's kernel do both at once;
here torch's own matrix product takes that kernel's place under the name Megatron calls.
"""

from __future__ import annotations

import functools

import torch
from megatron.core.tensor_parallel import layers


def accumulate(main_grad_OI: torch.Tensor, grad_output_TO: torch.Tensor, input_TI: torch.Tensor) -> None:
    """Adds grad_outputᵀ @ input to an fp32 sum, in place.

    Args:
        main_grad_OI: fp32.
        grad_output_TO: of the product's output, in the compute format.
        input_TI: of the product, in the same format.
    """
    if grad_output_TO.dtype == torch.float32:
        main_grad_OI.addmm_(grad_output_TO.t(), input_TI)
    elif main_grad_OI.is_cuda:
        torch.addmm(main_grad_OI, grad_output_TO.t(), input_TI, out_dtype=torch.float32, out=main_grad_OI)
    else:  # the CPU has no such product; products of bf16 numbers are exact in fp32
        main_grad_OI.addmm_(grad_output_TO.t().float(), input_TI.float())


@functools.cache
def can_accumulate(device: torch.device) -> bool:
    """Whether `accumulate` works in bf16 on this device: torch took fp32 sums for such products only lately."""
    sums = torch.ones(16, 16, device=device)
    halves = torch.full((16, 16), 0.5, dtype=torch.bfloat16, device=device)
    try:
        accumulate(sums, halves, halves)
    except RuntimeError:
        return False
    return bool((sums == 1 + 16 * 0.5 * 0.5).all())


def handed_over(weight: torch.Tensor) -> torch.Tensor:
    """What autograd gets for a gradient that is in `weight.main_grad` already, and marks it as Megatron does.

    As Megatron's LinearWithGradAccumulationAndAsyncCommunication has it: its DDP needs a gradient to start reducing
    at, and adds it only where it is not marked, or where an embedding with the same weight adds its own to zeros.
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)


def install() -> None:
    """Takes the place of Apex's `fused_weight_gradient_mlp_cuda` for Megatron's tensor-parallel Linears; idempotent.

    Replaces two names of megatron/core/tensor_parallel/layers.py that are otherwise set by importing Apex's extension.
    """
    layers.fused_weight_gradient_mlp_cuda = _Kernel
    layers._grad_accum_fusion_available = True


class _Kernel:
    """The one function of Apex's extension that is called with fp32 sums."""

    @staticmethod
    def wgrad_gemm_accum_fp32(input_TI: torch.Tensor, grad_output_TO: torch.Tensor, main_grad_OI: torch.Tensor) -> None:
        accumulate(main_grad_OI, grad_output_TO, input_TI)
