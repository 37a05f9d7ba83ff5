"""Clip and update in one pass, with every decision left on the device: nobody waits for the norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from pretrain.config.optimizer import OptimizerConfig
from pretrain.engine.megatron.adamw import FusedAdamW


def parts_of(optimizer: Any) -> list[Any]:
    """Megatron's optimizers of this rank; those of a rank without parameters are stubs."""
    return list(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def squared_norm(part: Any, device: torch.device) -> torch.Tensor:
    """fp64 0-dim: squared L2 norm of the gradient of the whole model, before clipping; the same on every rank.

    Which gradients count, and over which ranks, Megatron knows. Its own norm, without Apex or TransformerEngine, asks
    one gradient after the other and waits for the device each time.
    """
    grads, group = part.get_main_grads_for_grad_norm(), part.get_grad_stats_parallel_group()
    square = torch.zeros((), dtype=torch.float64, device=device)
    if grads:
        square = torch.stack(torch._foreach_norm(grads)).double().square().sum()
    if dist.get_world_size(group) > 1:
        dist.all_reduce(square, group=group)
    return square


class FusedUpdate:
    """Takes the place of the Adam inside of Megatron's optimizers, and of their step.

    Sharding, reduction and the gathering of weights stay Megatron's; rounding to bf16 is part of the pass.

    Args:
        optimizer: what `get_megatron_optimizer` returned.
        settings: of AdamW and clipping.
        compiled: whether the pass is one kernel.
        device: where the rank computes.
    """

    def __init__(self, optimizer: Any, settings: OptimizerConfig, *, compiled: bool, device: torch.device) -> None:
        self._parts, self._clip, self._device = parts_of(optimizer), settings.grad_clip, device
        for part in self._parts:
            if not part.is_stub_optimizer:
                part.optimizer = FusedAdamW(
                    part.optimizer.param_groups,
                    betas=(settings.beta1, settings.beta2),
                    eps=settings.epsilon,
                    copies=dict(_copies(part)),
                    compiled=compiled,
                )

    @torch.no_grad()
    def __call__(self, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips and steps unless loss or gradient is not finite.

        Args:
            loss: fp64 0-dim, the same on every rank.

        Returns:
            fp64 0-dim, the norm before clipping; bool 0-dim, whether the update was applied.
        """
        square = torch.zeros((), dtype=torch.float64, device=self._device)
        for part in self._parts:
            square = square + squared_norm(part, self._device)
        norm = square.sqrt()
        finite = norm.isfinite() & loss.isfinite()
        # As torch.nn.utils.clip_grad_norm_. What is not finite is not applied, whatever it is multiplied with.
        scale = (self._clip / (norm + 1e-6)).clamp(max=1.0) if self._clip > 0.0 else torch.ones_like(norm)
        for part in self._parts:
            if not part.is_stub_optimizer:
                part.optimizer.step(scale=scale.float(), apply=finite)
            if isinstance(part, DistributedOptimizer) and not part.ddp_config.overlap_param_gather:
                for chunk in part.model_chunks:
                    chunk.start_param_sync()
        return norm, finite


def _copies(part: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """fp32 weights of an optimizer and where their rounded copies belong."""
    if isinstance(part, DistributedOptimizer):
        pairs = zip(part.shard_fp32_from_float16_groups, part.shard_float16_groups, strict=True)
    elif isinstance(part, Float16OptimizerWithFloat16Params):
        pairs = zip(part.fp32_from_float16_groups, part.float16_groups, strict=True)
    else:
        return
    for mains, models in pairs:
        for main, model in zip(mains, models, strict=True):
            yield main, model.detach()
