"""What an engine takes of a rank's memory, and how its ranks share state out: what plans ask instead of engine names.

Each engine answers in `planning.py` of its own folder, by arithmetic and without torch, because a search over layouts
asks thousands of times; `pretrain.engine.build` passes the question on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pretrain.config.engine import EngineConfig
from pretrain.config.run import RunConfig
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec

FP32 = 4
MOMENTS = 2 * FP32
SHARED = ("none", "optimizer", "gradients", "parameters")
"""What ranks can share out; each kind includes those before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """One rank's state under an engine; bytes on the device, without activations.

    Attributes:
        weights: what the model computes with.
        gradients: fp32 sums.
        optimizer: moments, and fp32 weights where they are another copy.
        buffers: of communication.
        update: needed for a moment while weights are updated, when activations are gone.
        gradients_follow_activations: gradients are held for the rest of a step only, and come as activations go.
        optimizer_ranks: ranks that share the optimizer's state out.
        shared: what data-parallel ranks share out, one of `SHARED`.
        optimizer_on_host: the optimizer's state is in host memory and updated there.
        fused_update: the update is one pass over the parameters.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    update: int
    gradients_follow_activations: bool
    optimizer_ranks: int
    shared: str
    optimizer_on_host: bool
    fused_update: bool


class Planning(Protocol):
    """What `planning.py` of an engine holds; needs no torch."""

    def footprint(self, config: RunConfig, layout: ParallelLayout, spec: ModelSpec, *, stage: int) -> Footprint:
        """State of a rank on one pipeline stage; exact for weights, gradients and optimizer state."""
        ...

    def variants(self, own: EngineConfig | None) -> Iterator[EngineConfig]:
        """The ways to share state out that a search tries.

        Args:
            own: the run's options of this engine, which stay; None where the run has another engine: its groups.
        """
        ...

    def group(self, engine: EngineConfig) -> str:
        """The group in `configs/engine` that these options belong to."""
        ...

    def as_group(self, engine: EngineConfig) -> EngineConfig:
        """The options of that group, with nothing changed."""
        ...

    def sharing(self, engine: EngineConfig) -> str:
        """Who shares state out, in words."""
        ...


def stage_elements(spec: ModelSpec, layout: ParallelLayout, *, stage: int, tensor: int) -> int:
    """Parameters of one of `tensor` ranks that share a pipeline stage, by arithmetic; 1 gives the whole stage.

    Matrices are split evenly, norms are copied. The last of several stages has its own copy of tied embeddings.
    """
    layers, last = spec.num_layers // layout.pipeline, stage == layout.pipeline - 1
    heads, hidden = spec.num_attention_heads * spec.head_dim, spec.hidden_size
    matrices = layers * hidden * (spec.qkv_size + heads + 3 * spec.ffn_hidden_size)
    tables = 1 if spec.tie_embeddings and layout.pipeline == 1 else int(stage == 0) + int(last)
    matrices += tables * spec.padded_vocab_size * hidden
    return matrices // tensor + (2 * layers + int(last)) * hidden


def compute_bytes(config: RunConfig) -> int:
    """Bytes of an element of weights and activations."""
    return 2 if config.precision.compute == "bf16" else FP32
