"""AdamW in one pass: clip, decay, moments, update and the rounded copy, read and written once per element.

Megatron without Apex or TransformerEngine steps with torch's Adam, scales the gradients before and copies the weights
after it: three more passes over memory, and an answer to wait for before each. Here the scale, and whether the update
is applied at all, stay on the device. Who computes them, and where parameters lie, is the engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.model.layers.compiled import fast


class FusedAdamW(torch.optim.Optimizer):
    """AdamW with the arithmetic of `torch.optim.AdamW`'s single-tensor path, in the same order.

    Each group has `step`, a fp32 0-dim tensor on the parameters' device that counts applied updates; each parameter's
    state is `exp_avg` and `exp_avg_sq`, made here, fp32 and of the parameter's shape. `lr` and `weight_decay` of a
    group are Python numbers and are read anew at every step.

    Args:
        groups: parameter groups; the dicts are kept as they are and hold at least `params`, `lr`, `weight_decay`.
            Parameters are contiguous fp32.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        copies: for a parameter, the contiguous tensor of as many elements that gets the rounded weights; absent where
            the parameter is the model's own.
        compiled: one kernel per parameter, the same one for all sizes; otherwise eager, with temporaries of one
            parameter's size.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        copies: Mapping[Tensor, Tensor],
        compiled: bool,
    ) -> None:
        # torch takes leaves alone. What Megatron shards of fp32 weights are views of them, which is as good here.
        super().__init__([{"params": [torch.zeros(1)]}], {})
        self.param_groups = groups
        for group in groups:
            group |= {"betas": betas, "eps": eps}
        self._copies, self._compiled = copies, compiled
        parameters = [p for group in self.param_groups for p in group["params"]]
        device = parameters[0].device if parameters else torch.device("cpu")
        for group in self.param_groups:
            group["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for p in parameters:
            assert p.dtype == torch.float32 and p.is_contiguous(), "FusedAdamW steps contiguous fp32 parameters"
            self.state[p] = {"exp_avg": torch.zeros_like(p.data), "exp_avg_sq": torch.zeros_like(p.data)}

    @torch.no_grad()
    def step(self, *, scale: Tensor, apply: Tensor) -> None:  # type: ignore[override]
        """One update from each parameter's `grad`, which is not changed; nothing waits for the device.

        Args:
            scale: fp32 0-dim on the device, multiplied into every gradient.
            apply: bool 0-dim on the device; false leaves parameters, moments, copies and `step` bitwise as they were,
                whatever the gradients hold.
        """
        compiled = self._compiled
        update = fast(_update, compiled)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            # In fp64, as torch computes them on the host, and rounded once.
            step = group["step"].double() + 1.0
            negative_step_size = (torch.full_like(step, -group["lr"]) / (1.0 - beta1**step)).float()
            correction2_sqrt = (1.0 - beta2**step).sqrt().float()
            decay = torch.full_like(scale, 1.0 - group["lr"] * group["weight_decay"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                copy, state = self._copies.get(p), self.state[p]
                update(
                    _flat(p.detach(), compiled),
                    _flat(p.grad, compiled),
                    _flat(state["exp_avg"], compiled),
                    _flat(state["exp_avg_sq"], compiled),
                    None if copy is None else _flat(copy, compiled),
                    scale=scale,
                    decay=decay,
                    negative_step_size=negative_step_size,
                    correction2_sqrt=correction2_sqrt,
                    apply=apply,
                    beta1=beta1,
                    beta2=beta2,
                    eps=group["eps"],
                )
            group["step"].add_(apply)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, but into the same group dicts, and with `step` on the parameters' device."""
        groups, steps = self.param_groups, [group["step"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, step, loaded in zip(groups, steps, self.param_groups, strict=True):
            group |= loaded | {"step": step.copy_(loaded["step"])}
        self.param_groups = groups


def _update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    copy: Tensor | None,
    *,
    scale: Tensor,
    decay: Tensor,
    negative_step_size: Tensor,
    correction2_sqrt: Tensor,
    apply: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Updates `param`, both moments and `copy` in place; 1-D tensors of one length, then 0-dim ones and numbers.

    Old values are chosen over new ones rather than multiplied by zero: a gradient that is not finite leaves no trace.
    """
    grad = grad * scale
    new_avg = exp_avg.lerp(grad, 1.0 - beta1)
    new_sq = (exp_avg_sq * beta2).addcmul_(grad, grad, value=1.0 - beta2)
    denominator = new_sq.sqrt().div_(correction2_sqrt).add_(eps)
    new_param = (param * decay).add_((new_avg * negative_step_size).div_(denominator))
    exp_avg.copy_(torch.where(apply, new_avg, exp_avg))
    exp_avg_sq.copy_(torch.where(apply, new_sq, exp_avg_sq))
    param.copy_(torch.where(apply, new_param, param))
    if copy is not None:
        copy.copy_(torch.where(apply, new_param.to(copy.dtype), copy))


def _flat(tensor: Tensor, compiled: bool) -> Tensor:
    """The tensor as one dimension, marked so that the first parameter's size does not become a constant."""
    flat = tensor.view(-1)  # never a copy: what is not contiguous is refused
    if compiled:
        torch._dynamo.maybe_mark_dynamic(flat, 0)
    return flat
