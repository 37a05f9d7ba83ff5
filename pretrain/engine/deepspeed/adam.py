"""Which implementation of AdamW updates the weights, chosen where everyone can see it.

DeepSpeed's own are compiled on first use: FusedAdam for the device, CPUAdam for state that is offloaded to the host.
`engine.adam=auto` takes them on a GPU where they can be built and torch's where not; on a CPU it takes torch's, which
needs no compiler and resumes bitwise (CPUAdam keeps 6e-8 of a difference: its threads split vectors by address).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pretrain.config.run import RunConfig
from pretrain.errors import EngineError


def build_adam(config: RunConfig, parameters: Sequence[torch.nn.Parameter], device: torch.device) -> Any:
    """The optimizer to hand to `deepspeed.initialize`. Every rank calls it and gets the same class.

    Args:
        config: `optimizer` and `engine.adam`, `engine.offload_optimizer` count.
        parameters: of this rank, in the order of the model.
        device: where this rank computes.

    Raises:
        EngineError: `engine.adam=deepspeed`, and it cannot be built on some rank; the same on every rank.
    """
    settings, engine = config.optimizer, config.engine
    exempt = {id(p) for p in parameters if p.dim() == 1 and settings.decay == "matrices"}
    parts = [
        ([p for p in parameters if id(p) not in exempt], settings.weight_decay),
        ([p for p in parameters if id(p) in exempt], 0.0),
    ]
    groups = [{"params": part, "weight_decay": decay} for part, decay in parts if part]
    options: dict[str, Any] = {
        "lr": config.schedule.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
    }
    if engine.adam == "torch" or (engine.adam == "auto" and device.type == "cpu"):
        return torch.optim.AdamW(groups, **options)
    problem: Exception | None = None
    try:
        found = _build_deepspeed(groups, options, offloaded=engine.offload_optimizer != "none")
    except Exception as error:  # noqa: BLE001 (whatever a compiler, a linker or CUDA's headers lead to)
        problem, found = error, None
    # One rank without a compiler decides for all: two implementations would round differently.
    missing = torch.tensor([int(problem is not None)], device=device)
    dist.all_reduce(missing, dist.ReduceOp.MAX)
    if not missing.item():
        return found
    reason = f"{type(problem).__name__}: {problem}" if problem else "another rank could not build it"
    if engine.adam == "deepspeed":
        raise EngineError(
            f"engine.adam=deepspeed cannot be built here ({reason}). Install a compiler and CUDA's headers, or set "
            f"engine.adam=torch."
        )
    if dist.get_rank() == 0:
        print(f"engine.adam=auto: torch's AdamW, because DeepSpeed's cannot be built ({reason})", file=sys.stderr)
    return torch.optim.AdamW(groups, **options)


def _build_deepspeed(groups: list[dict[str, Any]], options: dict[str, Any], *, offloaded: bool) -> Any:
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, **options, adamw_mode=True)
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(groups, **options, adam_w_mode=True)


def adam_state(optimizer: Any, parameter: torch.Tensor, *, step: int) -> dict[str, Any]:
    """State as the optimizer's first step would make it, at a given step, with a counter of its own.

    Args:
        optimizer: torch's AdamW, which counts in a tensor, or one of DeepSpeed's, which count in an int.
        parameter: fp32, any shape.
        step: updates done so far.
    """
    counts_in_tensor = isinstance(optimizer, torch.optim.AdamW)
    return {
        "step": torch.tensor(float(step)) if counts_in_tensor else step,
        "exp_avg": torch.zeros_like(parameter.data),
        "exp_avg_sq": torch.zeros_like(parameter.data),
    }
