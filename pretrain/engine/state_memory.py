"""Weights of one rank, and bytes of weights, gradients and optimizer state as each engine shares them out.

Arithmetic only, without torch: a search over layouts asks thousands of times.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec

_FP32 = 4
_MOMENTS = 2 * _FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMemory:
    """What one rank's device holds beside activations, in bytes.

    Attributes:
        weights: what the model computes with.
        gradients: fp32 sums.
        optimizer: moments, and fp32 weights where they are another copy.
    """

    weights: int
    gradients: int
    optimizer: int


def state_memory(config: RunConfig, layout: ParallelLayout, *, num_parameters: int) -> StateMemory:
    """State of a rank that computes with `num_parameters` weights.

    ZeRO's parts are those of Rajbhandari et al. 2020 (arXiv 1910.02054), table 1. A stage above 0 keeps fp32 weights
    of its own even where the model computes in fp32. Buffers of communication, and at stage 3 the layers that are
    whole for a moment, come on top.

    Args:
        config: engine and precision count.
        layout: the process grid.
        num_parameters: of this rank's tensor- and pipeline-parallel part.
    """
    engine, bf16 = config.engine, config.precision.compute == "bf16"
    stage, replicas = engine.zero_stage or 0, layout.data * layout.context
    share = -(-num_parameters // optimizer_ranks(config, layout))
    weights = (2 if bf16 else _FP32) * -(-num_parameters // (replicas if stage == 3 else 1))
    return StateMemory(
        weights=0 if engine.offload_parameters != "none" else weights,
        gradients=_FP32 * -(-num_parameters // (replicas if stage >= 2 else 1)),
        optimizer=0 if engine.offload_optimizer != "none" else (_MOMENTS + _FP32 * (bf16 or stage > 0)) * share,
    )


def optimizer_ranks(config: RunConfig, layout: ParallelLayout) -> int:
    """Ranks that share the optimizer's state out."""
    shared = config.engine.distributed_optimizer or (config.engine.zero_stage or 0) > 0
    return layout.data * layout.context if shared else 1


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
