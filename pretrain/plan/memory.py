"""Bytes a rank needs at its fullest moment, counted operation by operation. Arithmetic only, without torch.

`tests/unit/plan/test_memory_of_a_step.py` holds it against every allocation of real steps. What it leaves out: CUDA
context, NCCL's buffers, workspaces of libraries and fragmentation, for which `RESERVED_SHARE` of a device is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.engine.build import footprint
from pretrain.engine.footprint import FP32, compute_bytes
from pretrain.engine.kernels import planned
from pretrain.engine.layout import ParallelLayout
from pretrain.model.kernels import Kernels
from pretrain.model.spec import ModelSpec

RESERVED_SHARE = 0.06
"""Of a device's memory: a context of about 0.5 GiB, NCCL's buffers for each group, and fragmentation; an assumption."""

_LOSS_CHUNK = 2**28
"""Bytes of a chunk's logits in fp32 on a GPU, see `pretrain/model/layers/loss.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a rank at its fullest moment.

    Attributes:
        weights: in the format of compute.
        gradients: fp32, summed over microbatches. Where an engine holds them for the rest of a step only, they come as
            activations go, and what counts is by how much they are more.
        optimizer: fp32 moments, and fp32 weights where compute is bf16: this rank's share.
        buffers: of communication, which some engines allocate whole.
        activations: kept for backward, all microbatches in flight.
        momentary: the most that there is beside them for a moment; see `momentary_bytes`.
        total: sum of all.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    momentary: int
    total: int


def rank_memory(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, stage: int) -> Memory:
    """Memory of any rank of a pipeline stage: what its engine reports of state, and the model's activations.

    Args:
        config: engine, precision and sequence length count.
        spec: sizes of the model.
        layout: the process grid.
        stage: of the pipeline.
    """
    state = footprint(config, layout, spec, stage=stage)
    activations = activation_bytes(config, spec, layout, stage=stage)
    momentary = momentary_bytes(config, spec, layout, stage=stage)
    gradients = state.gradients
    if state.gradients_follow_activations:
        gradients = max(0, gradients - activations)
    parts = {
        "weights": state.weights,
        "gradients": gradients,
        "optimizer": state.optimizer,
        "buffers": state.buffers,
        "activations": activations,
        "momentary": max(momentary, state.update - activations),
    }
    return Memory(**parts, total=sum(parts.values()))


def fullest(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> Memory:
    """Memory of the rank that needs most: of the first stage (most in flight) or the last (the loss)."""
    stages = {0, layout.pipeline - 1}
    return max((rank_memory(config, spec, layout, stage=stage) for stage in stages), key=lambda memory: memory.total)


def chunks_in_flight(layout: ParallelLayout, *, stage: int) -> int:
    """Forward passes of a model chunk that wait for their backward, at most, on one pipeline stage.

    1F1B; with virtual stages the interleaved schedule of Narayanan et al. 2021 (arXiv 2104.04473).
    """
    ahead = layout.pipeline - stage - 1
    if layout.virtual_pipeline > 1:
        ahead = 2 * ahead + (layout.virtual_pipeline - 1) * layout.pipeline
    return min(ahead + 1, layout.num_microbatches * layout.virtual_pipeline)


def activation_bytes(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, stage: int) -> int:
    """Activations of a rank on one pipeline stage that wait for backward, in bytes.

    Counted operation by operation in the manner of Korthikanti et al. 2022 (arXiv 2205.05198), for what this model
    does: RMSNorm (fused, as on CUDA), rotary embedding, attention that keeps no scores (nothing grows with S²),
    SwiGLU, no dropout. Elements of a token and layer, where Q and K are the widths of all queries and of all keys, F
    that of SwiGLU, t tensor parallel, and r = t with sequence parallelism, else 1. Of Megatron's own layers, of which
    nothing else is fused (`kernels.layers=plain`):

        4 H / r         inputs and outputs of the two norms
        3 (Q + K) / t   the projection (values are a view of it), queries and keys after rotation, the result
        5 F / t         the projection (2), silu of the gate, the other half plus an offset of 0, their product

    Of fused layers (`kernels.layers=fused`) only what is not elementwise keeps a copy beside its input:

        4 H / r         what the two norms are of, and their outputs
        2 (Q + K) / t   queries, keys, values, the result
        3 F / t         the projection (2), the product of its halves

    of which recompute=selective leaves 2 H / r + 2 (Q + K) / t + 2 F / t. The chunked loss (`kernels.loss`) keeps the
    logits of all tokens in bf16, and none in fp32.

    To Megatron's own layers come 4 cosines and sines of a head for each position, and the softmax's normaliser, fp32,
    for each head: all that recompute=selective saves, as there are no scores. recompute=full keeps H / r.
    With `kernels.attention=math` scores are kept, in fp32. Context parallelism keeps keys and values of the whole
    sequence and a mask instead of the projection; so does a document mask, of every sequence.
    """
    layers, kernels = spec.num_layers // (layout.pipeline * layout.virtual_pipeline), planned(config)
    residual, last = _residual(config, spec, layout), stage == layout.pipeline - 1
    chunk = layers * (residual if config.engine.recompute == "full" else _layer(config, spec, layout, kernels))
    if not last or layout.virtual_pipeline > 1:
        chunk += residual  # a stage's output stays until its backward: Megatron is told not to deallocate it
    total = chunks_in_flight(layout, stage=stage) * chunk
    if not last:
        return total
    size = compute_bytes(config)
    if size < FP32 and kernels.loss == "chunked":
        total += size * _tokens(config, layout) * spec.vocab_size // layout.tensor
    return total + 2 * residual


def momentary_bytes(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, stage: int) -> int:
    """The larger of what the loss and what a layer's backward needs beside the activations that are kept.

    The whole loss: logits in the format of compute (twice where rows of padding are masked) and in fp32; with z-loss
    in fp32 once more. A layer: what recompute=full computes again, and the gradients of SwiGLU's two halves.
    """
    tokens, size, kernels = _tokens(config, layout), compute_bytes(config), planned(config)
    layer = 2 * size * tokens * spec.ffn_hidden_size // layout.tensor
    if config.engine.recompute == "full":
        layer += _layer(config, spec, layout, kernels)
    if stage < layout.pipeline - 1:
        return layer
    if kernels.loss == "chunked":
        # Of a chunk logits and their gradient; of all tokens the gradient of what the output layer was given.
        gradient = size * tokens * spec.hidden_size
        summed = 0 if kernels.weight_gradients == "accumulated" else FP32 * spec.padded_vocab_size * spec.hidden_size
        return max(layer, gradient + summed // layout.tensor + 2 * _LOSS_CHUNK)
    copies = FP32 + (size if size < FP32 else 0)
    copies += size * (spec.padded_vocab_size > spec.vocab_size) + FP32 * (config.optimizer.z_loss > 0)
    return max(layer, tokens * spec.padded_vocab_size // layout.tensor * copies)


def keeps_scores(config: RunConfig) -> bool:
    """Whether attention keeps its scores in memory. A CPU has a kernel of its own, whatever is to come first."""
    return planned(config).attention[:1] == ("math",) and config.cluster.device is not None


def _tokens(config: RunConfig, layout: ParallelLayout) -> int:
    """Of one microbatch on one rank."""
    return layout.micro_batch_size * config.train.sequence_length // layout.context


def _residual(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    split = layout.tensor if config.parallel.sequence else 1
    return compute_bytes(config) * spec.hidden_size * _tokens(config, layout) // split


def _scores(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    """The math kernel's: softmax of every pair, in fp32."""
    if not keeps_scores(config):
        return 0
    return FP32 * _tokens(config, layout) * config.train.sequence_length * spec.num_attention_heads // layout.tensor


def _fused_layer(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    """What one of our layers keeps that is not recomputed."""
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    tokens, size, selective = _tokens(config, layout), compute_bytes(config), config.engine.recompute == "selective"
    attention = 2 * (queries + keys * layout.context)  # keys and values of the whole sequence, not of a part
    masks = 0
    if layout.context > 1 or config.data.document_mask:
        length = config.train.sequence_length
        masks = size * (layout.micro_batch_size if config.data.document_mask else 1) * length * length // layout.context
    elements = attention + (2 if selective else 3) * spec.ffn_hidden_size
    kept = tokens * (size * elements + FP32 * spec.num_attention_heads) // layout.tensor
    norms = 2 * FP32 * tokens // (layout.tensor if config.parallel.sequence else 1)
    residual = (2 if selective else 4) * _residual(config, spec, layout)
    return residual + norms + kept + masks + _scores(config, spec, layout)


def _layer(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, kernels: Kernels) -> int:
    """What one layer keeps that is not recomputed."""
    if kernels.layers == "fused":
        return _fused_layer(config, spec, layout)
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    length, tensor, tokens = config.train.sequence_length, layout.tensor, _tokens(config, layout)
    size = compute_bytes(config)
    attention = size * tokens * 3 * (queries + keys) // tensor
    if config.engine.recompute != "selective":
        if layout.context > 1:
            attention = size * tokens * 2 * (queries + keys * layout.context) // tensor
        if layout.context > 1 or config.data.document_mask:
            masks = layout.micro_batch_size if config.data.document_mask else 1
            attention += size * masks * length * length // layout.context
        attention += FP32 * tokens * spec.num_attention_heads // tensor + _scores(config, spec, layout)
    rotation = size * 4 * length // layout.context * spec.head_dim
    feed_forward = size * tokens * 5 * spec.ffn_hidden_size // tensor
    return 4 * _residual(config, spec, layout) + rotation + attention + feed_forward
