"""From `kernels` of the configuration to what is used on this device: each choice once, with its reason.

Whatever is chosen computes the same function; tests hold the fast ones to the plain ones and to independent models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch

from pretrain.config.kernels import AUTO
from pretrain.config.run import RunConfig
from pretrain.model.layers.weight_gradient import can_accumulate

_PLAIN = "a CPU gains little by the others"
_ATTENTION = ("cudnn", "flash", "efficient", "math")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """What computes each part of a step; see `pretrain.config.kernels` for the values.

    Attributes:
        attention: SDPA's backends, the preferred one first; empty leaves torch its own choice.
        layers: `plain` or `fused`.
        compile: whether elementwise functions are compiled.
        loss: `whole` or `chunked`.
        weight_gradients: `plain` or `accumulated`.
        optimizer: `plain` or `fused`.
        cuda_graphs: whether layers are replayed.
        fp8: whether Linear layers multiply in fp8.
        recompute: whether norms and SwiGLU of fused layers are computed again in backward.
        reasons: of what `auto` chose, by the field's name.
    """

    attention: tuple[str, ...] = ()
    layers: str = "plain"
    compile: bool = False
    loss: str = "whole"
    weight_gradients: str = "plain"
    optimizer: str = "plain"
    cuda_graphs: bool = False
    fp8: bool = False
    recompute: bool = False
    reasons: dict[str, str] = field(default_factory=dict, compare=False)

    def describe(self) -> dict[str, object]:
        """Plain JSON values, for manifests and events."""
        named = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "reasons"}
        return named | {"attention": list(self.attention)}

    def lines(self) -> Iterator[str]:
        """What was left to us, for people: a line for each reason."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            value = getattr(self, name)
            shown = value[0] if isinstance(value, tuple) else str(value).lower()
            by_reason.setdefault(reason, []).append(f"{name}={shown}")
        for reason, chosen in by_reason.items():
            yield f"kernels: {' '.join(chosen)} ({reason})"


def choose(config: RunConfig, device: torch.device) -> Kernels:
    """What this run uses on this device; deterministic, the same on ranks with the same device.

    Args:
        config: checked for this machine (`pretrain.engine.build.check_machine`).
        device: where this rank computes.
    """
    asked, engine = config.kernels, config.engine
    on_gpu, bf16 = device.type == "cuda", config.precision.compute == "bf16"
    megatron = engine.name == "megatron"
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
        capability = torch.cuda.get_device_capability(device)
        first = "cudnn" if capability == (9, 0) and bf16 else "flash" if bf16 else "efficient"
        reasons["attention"] = f"compute capability {capability[0]}.{capability[1]}, {config.precision.compute}"
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
                (not megatron, "plain", "DeepSpeed sums gradients itself"),
                (engine.transformer_engine, "plain", "engine.transformer_engine=true brings its own products"),
                (not bf16, "plain", "fp32 products are in the sum's format already"),
                (
                    on_gpu and not can_accumulate(device),
                    "plain",
                    f"torch {torch.__version__} adds no bf16 product to an fp32 sum here",
                ),
                (on_gpu, "accumulated", "no bf16 product in between"),
                (True, "plain", _PLAIN),
            ),
        ),
        optimizer=pick(
            "optimizer",
            (
                (not megatron, "plain", "engine.adam decides under DeepSpeed"),
                (on_gpu, "fused", "one pass, and no wait for the norm"),
                (True, "plain", _PLAIN),
            ),
        ),
        cuda_graphs=asked.cuda_graphs,
        fp8=config.precision.fp8,
        recompute=layers == "fused" and engine.recompute == "selective",
        reasons=reasons,
    )
