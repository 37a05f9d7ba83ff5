"""Linear layers whose three products are in fp8, each tensor scaled by its own largest magnitude.

Micikevicius et al. 2022 (arXiv 2209.05433): weights and activations in e4m3, gradients in e5m2, which reaches further.
Scales are taken from the tensor itself at every use (torchao's "tensorwise" recipe with dynamic scaling), so there is
no state to save. The input is kept for backward in fp8: half of what bf16 keeps. Scoring and generation multiply in
bf16: a run is measured on the weights it releases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from pretrain.model.layers.compiled import fast
from pretrain.model.layers.weight_gradient import handed_over

_WEIGHT, _GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2


class _Fp8Linear:
    """What both of Megatron's Linears are given: the product in fp8 while gradients are made, theirs otherwise.

    One that Megatron built becomes this one by its class; parameters and collectives are the same.
    """

    config: Any
    in_fp8 = True

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if not (self.in_fp8 and torch.is_grad_enabled()):
            return super()._forward_impl(input, weight, *args, **options)  # type: ignore[misc]
        if options["sequence_parallel"]:
            group = options["tp_group"]
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=group)
        elif options["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=options["tp_group"])
        return linear(
            input, weight, compiled=self.config.kernels.compile, accumulate=options["gradient_accumulation_fusion"]
        )


class Fp8ColumnParallelLinear(_Fp8Linear, ColumnParallelLinear):
    """Megatron's, in fp8."""


class Fp8RowParallelLinear(_Fp8Linear, RowParallelLinear):
    """Megatron's, in fp8."""


def convert(layer: Any) -> None:
    """Gives the four Linears of a transformer layer their fp8 class."""
    for linear_ in (layer.self_attention.linear_qkv, layer.mlp.linear_fc1):
        linear_.__class__ = Fp8ColumnParallelLinear
    for linear_ in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
        linear_.__class__ = Fp8RowParallelLinear


@contextlib.contextmanager
def without_fp8(model: torch.nn.Module) -> Iterator[None]:
    """Training passes of this model multiply in bf16 while it is entered; what fp8's loss is compared with."""
    linears = [module for module in model.modules() if isinstance(module, _Fp8Linear)]
    for linear_ in linears:
        linear_.in_fp8 = False
    try:
        yield
    finally:
        for linear_ in linears:
            linear_.in_fp8 = True


def linear(input: torch.Tensor, weight_OI: torch.Tensor, *, compiled: bool, accumulate: bool) -> torch.Tensor:
    """Input @ weightᵀ, forward and backward in fp8.

    Args:
        input: bf16 [..., I].
        weight_OI: bf16; I, O and the number of rows of the input are multiples of 16.
        compiled: whether scaling and rounding are compiled.
        accumulate: add the weight's gradient to `weight.main_grad`, in fp32.

    Returns:
        bf16 [..., O].
    """
    return _Linear.apply(input, weight_OI, compiled, accumulate)


def to_fp8(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor over its scale, rounded to fp8, and fp32 the scale: its largest magnitude becomes the format's."""
    largest = torch.finfo(dtype).max
    scale = tensor.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny * largest) / largest
    return (tensor.float() / scale).clamp(-largest, largest).to(dtype), scale


def to_fp8_both_ways(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `to_fp8`, the transposed tensor in memory order between the two: fp8 products want both by rows."""
    rounded, scale = to_fp8(tensor, dtype)
    return rounded, rounded.t().contiguous(), scale


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The transposed matrix in memory order."""
    return tensor.t().contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, compiled: bool, accumulate: bool) -> torch.Tensor:
        input_TI, input_scale = fast(to_fp8, compiled)(input.detach().flatten(0, -2), _WEIGHT)
        weight_OI, weight_scale = fast(to_fp8, compiled)(weight.detach(), _WEIGHT)
        ctx.compiled, ctx.accumulate = compiled, accumulate
        ctx.save_for_backward(input_TI, input_scale, weight)
        out = _product(input_TI, input_scale, weight_OI, weight_scale, input.dtype, fast_sums=True)
        return out.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        input_TI, input_scale, weight = ctx.saved_tensors
        both = fast(to_fp8_both_ways, ctx.compiled)
        grad_TO, grad_OT, grad_scale = both(grad.flatten(0, -2), _GRADIENT)
        _, weight_IO, weight_scale = both(weight.detach(), _WEIGHT)
        of_input = _product(grad_TO, grad_scale, weight_IO, weight_scale, grad.dtype, fast_sums=False)
        input_IT = fast(transposed, ctx.compiled)(input_TI)
        of_weight = _product(grad_OT, grad_scale, input_IT, input_scale, torch.float32, fast_sums=False)
        if ctx.accumulate and hasattr(weight, "main_grad"):
            weight.main_grad += of_weight
            of_weight = handed_over(weight)
        return of_input.view(*grad.shape[:-1], -1), of_weight.to(weight.dtype), None, None


def _product(
    left_MK: torch.Tensor,
    left_scale: torch.Tensor,
    right_NK: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    fast_sums: bool,
) -> torch.Tensor:
    """Left @ rightᵀ; `fast_sums` lets the matrix units add up with fewer bits, which gradients cannot afford."""
    return torch._scaled_mm(
        left_MK,
        right_NK.t(),
        scale_a=left_scale,
        scale_b=right_scale,
        out_dtype=dtype,
        use_fast_accum=fast_sums,
    )
