"""Which implementation computes each part of a step, settled; `pretrain.engine.kernels` makes the choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields


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
