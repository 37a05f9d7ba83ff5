"""From `kernels` of the configuration to what is used: each choice once, with its reason.

A run asks for the device that it computes on (`choose`), a plan for the device that its cluster names (`planned`), so
that both say the same. Whatever is chosen computes the same function; tests hold the fast ones to the plain ones and
to independent models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.config.kernels import AUTO
from pretrain.config.run import RunConfig
from pretrain.engine.capabilities import ENGINES
from pretrain.model.kernels import Kernels

if TYPE_CHECKING:
    import torch

_PLAIN = "a CPU gains little by the others"
_ATTENTION = ("cudnn", "flash", "efficient", "math")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What of a device the choice depends on.

    Attributes:
        on_gpu: whether it is a GPU.
        attention: the GPU's first choice for attention, and what it follows from.
        cannot_accumulate: why bf16 products cannot go straight into an fp32 sum; None where they can.
    """

    on_gpu: bool
    attention: tuple[str, str] = ("", "")
    cannot_accumulate: str | None = None


def choose(config: RunConfig, device: torch.device) -> Kernels:
    """What this run uses on this device; deterministic, the same on ranks with the same device.

    Args:
        config: checked for this machine (`pretrain.engine.build.check_machine`).
        device: where this rank computes.
    """
    if device.type != "cuda":
        return resolve(config, Machine(on_gpu=False))
    import torch

    from pretrain.model.layers.weight_gradient import can_accumulate

    capability, compute = torch.cuda.get_device_capability(device), config.precision.compute
    bf16 = compute == "bf16"
    first = "cudnn" if capability == (9, 0) and bf16 else "flash" if bf16 else "efficient"
    lacks = None if can_accumulate(device) else f"torch {torch.__version__} adds no bf16 product to an fp32 sum here"
    reason = f"compute capability {capability[0]}.{capability[1]}, {compute}"
    return resolve(config, Machine(on_gpu=True, attention=(first, reason), cannot_accumulate=lacks))


def planned(config: RunConfig) -> Kernels:
    """What this run uses on the devices of its cluster, as far as memory and time depend on it; needs no torch.

    A device with a name (`cluster.device`) is a GPU. Where none is named the run is planned as on a CPU.
    """
    first = "flash" if config.precision.compute == "bf16" else "efficient"
    return resolve(config, Machine(on_gpu=config.cluster.device is not None, attention=(first, "a GPU")))


def resolve(config: RunConfig, machine: Machine) -> Kernels:
    """What was asked for, and where that is `auto` what suits the machine; needs no torch."""
    asked, engine, can = config.kernels, config.engine, ENGINES[config.engine.name]
    on_gpu, bf16 = machine.on_gpu, config.precision.compute == "bf16"
    reasons: dict[str, str] = {}

    def pick(name: str, rules: tuple[tuple[bool, str, str], ...]) -> str:
        """What was asked for, or of the rules (condition, value, reason) the first that holds."""
        value: str = getattr(asked, name)
        if value != AUTO:
            return value
        _, value, reasons[name] = next(rule for rule in rules if rule[0])
        return value

    first = asked.attention
    if first == AUTO and on_gpu:
        first, reasons["attention"] = machine.attention
    layers = pick(
        "layers",
        (
            (engine.transformer_engine, "plain", "engine.transformer_engine=true brings its own layers"),
            (on_gpu, "fused", "fewer passes over memory and fewer kernels"),
            (True, "plain", _PLAIN),
        ),
    )
    compiled = asked.compile
    if compiled is None:
        compiled, reasons["compile"] = on_gpu, "one kernel for each fused function" if on_gpu else _PLAIN
    return Kernels(
        attention=() if first == AUTO else (first, *(name for name in _ATTENTION if name != first)),
        layers=layers,
        compile=compiled,
        loss=pick(
            "loss",
            ((on_gpu, "chunked", "fp32 logits of a microbatch never exist"), (True, "whole", _PLAIN)),
        ),
        weight_gradients=pick(
            "weight_gradients",
            (
                (not can.weight_gradients, "plain", "the engine sums gradients itself"),
                (engine.transformer_engine, "plain", "engine.transformer_engine=true brings its own products"),
                (not bf16, "plain", "fp32 products are in the sum's format already"),
                (on_gpu and machine.cannot_accumulate is not None, "plain", machine.cannot_accumulate or ""),
                (on_gpu, "accumulated", "no bf16 product in between"),
                (True, "plain", _PLAIN),
            ),
        ),
        optimizer=pick(
            "optimizer",
            (
                (not can.fused_optimizer, "plain", "engine.adam decides which AdamW runs"),
                (on_gpu, "fused", "one pass, and no wait for the norm"),
                (True, "plain", _PLAIN),
            ),
        ),
        cuda_graphs=asked.cuda_graphs,
        fp8=config.precision.fp8,
        recompute=layers == "fused" and engine.recompute == "selective",
        reasons=reasons,
    )
