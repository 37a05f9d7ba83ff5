"""Activations and logits of a rank, counted operation by operation. Arithmetic only, without torch.

Weights, gradients and optimizer state are in `pretrain.engine.state_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec

_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes a rank needs at its fullest moment, without CUDA context, communication buffers and fragmentation.

    Attributes:
        weights: in the format of compute.
        gradients: fp32, summed over microbatches.
        optimizer: fp32 moments, and fp32 weights where compute is bf16: this rank's share.
        activations: kept for backward, all microbatches in flight; see `activation_bytes`.
        logits: of one microbatch, in the format of compute and in fp32; on the last pipeline stage.
        total: sum of all.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


def chunks_in_flight(layout: ParallelLayout, *, stage: int) -> int:
    """Forward passes of a model chunk that wait for their backward, at most, on one pipeline stage.

    1F1B; with virtual stages the interleaved schedule of Narayanan et al. 2021 (arXiv 2104.04473).
    """
    ahead = layout.pipeline - stage - 1
    if layout.virtual_pipeline > 1:
        ahead = 2 * ahead + (layout.virtual_pipeline - 1) * layout.pipeline
    return min(ahead + 1, layout.num_microbatches * layout.virtual_pipeline)


def activation_bytes(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, stage: int) -> tuple[int, int]:
    """Activations and logits of a rank on one pipeline stage, in bytes.

    Counted operation by operation in the manner of Korthikanti et al. 2022 (arXiv 2205.05198), for what this model
    does: RMSNorm (fused, as on CUDA), rotary embedding, attention that keeps no scores (nothing grows with S²),
    SwiGLU, no dropout, nothing else fused. Elements of a token and layer, where Q and K are the widths of all queries
    and of all keys, F that of SwiGLU, t tensor parallel, and r = t with sequence parallelism, else 1:

        4 H / r         inputs and outputs of the two norms
        3 (Q + K) / t   the projection (values are a view of it), queries and keys after rotation, the result
        5 F / t         the projection (2), silu of the gate, the other half plus an offset of 0, their product

    To these come 4 cosines and sines of a head for each position, and the softmax's normaliser, fp32, for each head:
    all that recompute=selective saves, as there are no scores. recompute=full keeps H / r and one layer in full.
    Context parallelism keeps keys and values of the whole sequence and a mask instead of the projection.
    """
    size = 2 if config.precision.compute == "bf16" else _FP32
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    length, tensor, recompute = config.train.sequence_length, layout.tensor, config.engine.recompute
    tokens = layout.micro_batch_size * length // layout.context
    residual = size * spec.hidden_size * tokens // (tensor if config.parallel.sequence else 1)
    attention = size * tokens * 3 * (queries + keys) // tensor
    if recompute != "selective":
        if layout.context > 1:
            attention = size * tokens * 2 * (queries + keys * layout.context) // tensor
            attention += size * length * length // layout.context
        attention += _FP32 * tokens * spec.num_attention_heads // tensor
    rotation = size * 4 * length // layout.context * spec.head_dim
    layer = 4 * residual + rotation + attention + size * tokens * 5 * spec.ffn_hidden_size // tensor
    layers = spec.num_layers // (layout.pipeline * layout.virtual_pipeline)
    last = stage == layout.pipeline - 1
    chunk = layers * (residual if recompute == "full" else layer)
    if not last or layout.virtual_pipeline > 1:
        chunk += residual  # a stage's output stays until its backward: Megatron is told not to deallocate it
    total = chunks_in_flight(layout, stage=stage) * chunk + (layer if recompute == "full" else 0)
    if not last:
        return total, 0
    logits = tokens * spec.padded_vocab_size // tensor * (_FP32 + (size if size < _FP32 else 0))
    return total + 2 * residual, logits
