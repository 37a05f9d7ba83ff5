"""RMSNorm with its residual, RoPE and SwiGLU: one function forward and one backward each, in fp32 inside.

Each keeps for backward its input and nothing that can be computed from it, which saves memory, and passes over it as
seldom as can be, which saves time. The functions are plain torch; `compiled.py` makes one kernel of each. In bf16 they
round once, at their end, where Megatron's own layer rounds after every operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pretrain.model.layers.compiled import fast


def rms_norm(
    x: torch.Tensor, weight_H: torch.Tensor, residual: torch.Tensor | None, *, epsilon: float, compiled: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Root-mean-square norm (Zhang and Sennrich 2019) of x, or of residual + x.

    Args:
        x: [..., H].
        weight_H: of the norm.
        residual: as x, or None.
        epsilon: added to the mean square.
        compiled: whether by compiled functions.

    Returns:
        What was normed (x, or the sum in its format), and its norm; both as x.
    """
    return _RMSNorm.apply(x, weight_H, residual, epsilon, compiled)


def swiglu(gate_up: torch.Tensor, *, compiled: bool) -> torch.Tensor:
    """silu(gate) · up of [..., 2F], gate first (Shazeer 2020): [..., F]."""
    return _SwiGLU.apply(gate_up, compiled)


def rotated_heads(
    mixed: torch.Tensor, table: torch.Tensor, *, head_dim: int, heads_per_group: int, compiled: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of the fused projection, the first two with rotary embedding (Su et al. 2021).

    Args:
        mixed: [S, B, groups · (heads_per_group + 2) · head_dim]: of each group its queries, its key, its value.
        table: fp32 [S, 1, 1, head_dim], see `rope.RotaryTable`.
        head_dim: width of a head.
        heads_per_group: query heads that share a key.
        compiled: whether by compiled functions.

    Returns:
        [S, B, heads, head_dim], and twice [S, B, groups, head_dim].
    """
    grouped = mixed.unflatten(-1, (-1, heads_per_group + 2, head_dim))
    return _RotatedHeads.apply(grouped, table, compiled)


def release(output: torch.Tensor, *, used_for: torch.Tensor, again: Callable[[], torch.Tensor]) -> None:
    """Frees the elements of a tensor that the operation after it keeps, and makes them again before its backward.

    The tensor itself stays where it was kept: autograd's hooks for saved tensors would be simpler, but give a weight
    that is saved beside it another identity, and with it Megatron's marks on the weight are lost.

    Args:
        output: what was computed; nobody else keeps it.
        used_for: the result of the operation after it.
        again: gives the same elements once more.
    """
    storage, kept = output.untyped_storage(), [output]
    size_bytes = storage.nbytes()

    def refill(_: torch.Tensor) -> None:
        tensor = kept.pop()  # from here on only the operation holds it, until its backward is done
        storage.resize_(size_bytes)
        tensor.data.copy_(again())

    used_for.register_hook(refill)
    storage.resize_(0)


def norm_forward(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and fp32 [..., 1] the factor that it is made with."""
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * factor * weight.float()).to(x.dtype), factor


def sum_norm_forward(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum, rounded to its format, then as `norm_forward`."""
    total = x + residual
    return (total, *norm_forward(total, weight, epsilon))


def norm_backward(
    grad: torch.Tensor, grad_sum: torch.Tensor | None, x: torch.Tensor, factor: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of what was normed, to which that of the residual stream is added, and of the weight, fp32 [H]."""
    grad_wide, scaled = grad.float(), x.float() * factor
    of_scaled = grad_wide * weight.float()
    of_x = factor * (of_scaled - scaled * (of_scaled * scaled).mean(-1, keepdim=True))
    if grad_sum is not None:
        of_x = of_x + grad_sum.float()
    return of_x.to(x.dtype), (grad_wide * scaled).flatten(0, -2).sum(0)


def swiglu_forward(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up."""
    gate, up = gate_up.float().chunk(2, -1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """Gradient of both halves."""
    gate, up = gate_up.float().chunk(2, -1)
    wide, sigmoid = grad.float(), torch.sigmoid(gate)
    of_gate = wide * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([of_gate, wide * gate * sigmoid], -1).to(gate_up.dtype)


def heads_forward(grouped_SBGPD: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries [S, B, G·(P-2), D], rotated keys and values [S, B, G, D] of what holds them per group.

    Values are copied: as a view they would keep the whole projection for backward.
    """
    query = _rotate(grouped_SBGPD[..., :-2, :], table[..., None, :]).flatten(2, 3)
    return query, _rotate(grouped_SBGPD[..., -2, :], table), grouped_SBGPD[..., -1, :].clone()


def heads_backward(
    grad_query: torch.Tensor, grad_key: torch.Tensor, grad_value: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Gradient of what held them: rotated back, and put together per group."""
    cos, sin = table.chunk(2, -1)
    back = torch.cat([cos, -sin], -1)
    of_query = _rotate(grad_query.unflatten(2, (grad_key.shape[2], -1)), back[..., None, :])
    return torch.cat([of_query, _rotate(grad_key, back)[..., None, :], grad_value[..., None, :]], -2)


def _rotate(heads: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turns (x_i, x_{i + D/2}) by the angle whose cosines and sines the table holds, one after the other."""
    (first, second), (cos, sin) = heads.float().chunk(2, -1), table.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(heads.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor | None,
        epsilon: float,
        compiled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.compiled, ctx.has_residual = compiled, residual is not None
        ctx.set_materialize_grads(False)  # behind the last layer nothing goes on in the residual stream
        # Detached: whether a gradient is wanted, and that it is a parameter, would make compiled forms of their own.
        bare = weight.detach()
        if residual is None:
            total = x.view_as(x)
            normed, factor = fast(norm_forward, compiled)(x.detach(), bare, epsilon)
        else:
            total, normed, factor = fast(sum_norm_forward, compiled)(x.detach(), residual.detach(), bare, epsilon)
        ctx.save_for_backward(total, factor, weight)
        return total, normed

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, grad: torch.Tensor) -> tuple[Any, ...]:
        total, factor, weight = ctx.saved_tensors
        bare = total.detach(), factor, weight.detach()
        of_x, of_weight = fast(norm_backward, ctx.compiled)(grad, grad_sum, *bare)
        return of_x, of_weight.to(weight.dtype), of_x if ctx.has_residual else None, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, compiled: bool) -> torch.Tensor:
        ctx.compiled = compiled
        ctx.save_for_backward(gate_up)
        return fast(swiglu_forward, compiled)(gate_up.detach())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        return fast(swiglu_backward, ctx.compiled)(grad, gate_up.detach()), None


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grouped: torch.Tensor, table: torch.Tensor, compiled: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.compiled = compiled
        ctx.save_for_backward(table)
        return fast(heads_forward, compiled)(grouped.detach(), table)

    @staticmethod
    def backward(
        ctx: Any, grad_query: torch.Tensor, grad_key: torch.Tensor, grad_value: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        (table,) = ctx.saved_tensors
        return fast(heads_backward, ctx.compiled)(grad_query, grad_key, grad_value, table), None, None
