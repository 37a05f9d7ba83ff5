"""Bytes a rank needs at its fullest moment, counted operation by operation. Arithmetic only, without torch.

`tests/unit/plan/test_memory_of_a_step.py` holds it against every allocation of real steps. What it leaves out: CUDA
context, NCCL's buffers, workspaces of libraries and fragmentation, for which `RESERVED_SHARE` of a device is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.kernels import AUTO
from pretrain.config.run import RunConfig
from pretrain.engine.layout import ParallelLayout
from pretrain.engine.state_memory import optimizer_ranks, stage_elements, state_memory
from pretrain.model.spec import ModelSpec

RESERVED_SHARE = 0.06
"""Of a device's memory: a context of about 0.5 GiB, NCCL's buffers for each group, and fragmentation; an assumption."""

_FP32 = 4
_FAST = ("fused", "chunked", "accumulated")
_LOSS_CHUNK = 2**28
"""Bytes of a chunk's logits in fp32 on a GPU, see `pretrain/model/layers/loss.py`."""
_DEEPSPEED_BUCKET = 500_000_000
"""Elements of `reduce_bucket_size`, and _PREFETCH of `stage3_prefetch_bucket_size`: DeepSpeed's own choices."""
_PREFETCH = 50_000_000
_LIVE = 1_000_000_000
"""Its `stage3_max_reuse_distance`: weights that are needed again within so many elements stay whole. Around the loss
these are half as many, on their way forward and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a rank at its fullest moment.

    Attributes:
        weights: in the format of compute.
        gradients: fp32, summed over microbatches. DeepSpeed below stage 3 holds them for the rest of a step only: with
            a single microbatch they come as activations go, and what counts is by how much they are more.
        optimizer: fp32 moments, and fp32 weights where compute is bf16: this rank's share.
        buffers: DeepSpeed's, of communication.
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
    """Memory of any rank of a pipeline stage; exact for weights, Megatron's gradients and optimizer state.

    Args:
        config: engine, precision and sequence length count.
        spec: sizes of the model.
        layout: the process grid.
        stage: of the pipeline.
    """
    parameters = stage_elements(spec, layout, stage=stage, tensor=layout.tensor)
    state = state_memory(config, layout, num_parameters=parameters)
    activations = activation_bytes(config, spec, layout, stage=stage)
    momentary = momentary_bytes(config, spec, layout, stage=stage)
    if config.engine.name == "megatron" and not (config.engine.transformer_engine or _takes_fast(config, "optimizer")):
        # torch's AdamW takes the root of all second moments at once, when the activations are gone.
        momentary = max(momentary, _FP32 * -(-parameters // optimizer_ranks(config, layout)) - activations)
    gradients = state.gradients
    if config.engine.name == "deepspeed" and (config.engine.zero_stage or 0) < 3 and layout.num_microbatches == 1:
        gradients = max(0, gradients - activations)
    parts = {
        "weights": state.weights,
        "gradients": gradients,
        "optimizer": state.optimizer,
        "buffers": buffer_bytes(config, spec, layout),
        "activations": activations,
        "momentary": momentary,
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
    SwiGLU, no dropout, nothing else fused. Elements of a token and layer, where Q and K are the widths of all queries
    and of all keys, F that of SwiGLU, t tensor parallel, and r = t with sequence parallelism, else 1:

        4 H / r         inputs and outputs of the two norms
        3 (Q + K) / t   the projection (values are a view of it), queries and keys after rotation, the result
        5 F / t         the projection (2), silu of the gate, the other half plus an offset of 0, their product

    Of fused layers (`kernels.layers`) only what is not elementwise keeps a copy beside its input:

        4 H / r         what the two norms are of, and their outputs
        2 (Q + K) / t   queries, keys, values, the result
        3 F / t         the projection (2), the product of its halves

    of which recompute=selective leaves 2 H / r + 2 (Q + K) / t + 2 F / t. The chunked loss (`kernels.loss`) keeps the
    logits of all tokens in bf16, and none in fp32.

    To Megatron's own layers come 4 cosines and sines of a head for each position, and the softmax's normaliser, fp32,
    for each head: all that recompute=selective saves, as there are no scores. recompute=full keeps H / r.
    Context parallelism keeps keys and values of the whole sequence and a mask instead of the projection; so does a
    document mask, of every sequence.
    """
    layers = spec.num_layers // (layout.pipeline * layout.virtual_pipeline)
    residual, last = _residual(config, spec, layout), stage == layout.pipeline - 1
    chunk = layers * (residual if config.engine.recompute == "full" else _layer(config, spec, layout))
    if not last or layout.virtual_pipeline > 1:
        chunk += residual  # a stage's output stays until its backward: Megatron is told not to deallocate it
    total = chunks_in_flight(layout, stage=stage) * chunk
    if not last:
        return total
    size = _compute_bytes(config)
    if size < _FP32 and _takes_fast(config, "loss"):
        total += size * _tokens(config, layout) * spec.vocab_size // layout.tensor
    return total + 2 * residual


def momentary_bytes(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, stage: int) -> int:
    """The larger of what the loss and what a layer's backward needs beside the activations that are kept.

    The whole loss: logits in the format of compute (twice where rows of padding are masked) and in fp32; with z-loss
    in fp32 once more. A layer: what recompute=full computes again, and the gradients of SwiGLU's two halves.
    """
    tokens, size = _tokens(config, layout), _compute_bytes(config)
    layer = 2 * size * tokens * spec.ffn_hidden_size // layout.tensor
    if config.engine.recompute == "full":
        layer += _layer(config, spec, layout)
    if stage < layout.pipeline - 1:
        return layer
    if _takes_fast(config, "loss"):
        # Of a chunk logits and their gradient; of all tokens the gradient of what the output layer was given.
        gradient = size * tokens * spec.hidden_size
        summed = 0 if _takes_fast(config, "weight_gradients") else _FP32 * spec.padded_vocab_size * spec.hidden_size
        return max(layer, gradient + summed // layout.tensor + 2 * _LOSS_CHUNK)
    copies = _FP32 + (size if size < _FP32 else 0)
    copies += size * (spec.padded_vocab_size > spec.vocab_size) + _FP32 * (config.optimizer.z_loss > 0)
    return max(layer, tokens * spec.padded_vocab_size // layout.tensor * copies)


def buffer_bytes(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    """Buffers of DeepSpeed's communication, which it allocates whole, however small the model.

    Stages 1 and 2 have one for gradients, in fp32 and in the format of compute, and a second where reduction overlaps.
    Stage 3 has one, and the weights that are whole at a time: of a small model all of them.
    """
    engine, size = config.engine, _compute_bytes(config)
    stage = engine.zero_stage or 0
    if not stage:
        return 0
    bucket = _DEEPSPEED_BUCKET if engine.bucket_size is None else engine.bucket_size
    if stage < 3:
        return bucket * (_FP32 if stage == 1 else size) * (2 if engine.overlap_grad_reduce else 1)
    whole = stage_elements(spec, layout, stage=0, tensor=layout.tensor)
    table = spec.padded_vocab_size * spec.hidden_size // layout.tensor
    gathered = min(whole, _LIVE // 2 + _PREFETCH + table)
    return bucket * _FP32 + size * gathered


def _compute_bytes(config: RunConfig) -> int:
    return 2 if config.precision.compute == "bf16" else _FP32


def _tokens(config: RunConfig, layout: ParallelLayout) -> int:
    """Of one microbatch on one rank."""
    return layout.micro_batch_size * config.train.sequence_length // layout.context


def _residual(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    split = layout.tensor if config.parallel.sequence else 1
    return _compute_bytes(config) * spec.hidden_size * _tokens(config, layout) // split


def _takes_fast(config: RunConfig, part: str) -> bool:
    """Whether a part of the step is computed the fast way: chosen, or left open where the job's device is known."""
    value = getattr(config.kernels, part)
    if value != AUTO:
        return str(value) in _FAST
    if config.cluster.device is None or (config.engine.transformer_engine and part in ("layers", "weight_gradients")):
        return False
    bf16, megatron = config.precision.compute == "bf16", config.engine.name == "megatron"
    return {"weight_gradients": megatron and bf16, "optimizer": megatron}.get(part, True)


def _fused_layer(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    """What one of our layers keeps that is not recomputed."""
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    tokens, size, selective = _tokens(config, layout), _compute_bytes(config), config.engine.recompute == "selective"
    attention = 2 * (queries + keys * layout.context)  # keys and values of the whole sequence, not of a part
    masks = 0
    if layout.context > 1 or config.data.document_mask:
        length = config.train.sequence_length
        masks = size * (layout.micro_batch_size if config.data.document_mask else 1) * length * length // layout.context
    elements = attention + (2 if selective else 3) * spec.ffn_hidden_size
    kept = tokens * (size * elements + _FP32 * spec.num_attention_heads) // layout.tensor
    norms = 2 * _FP32 * tokens // (layout.tensor if config.parallel.sequence else 1)
    return (2 if selective else 4) * _residual(config, spec, layout) + norms + kept + masks


def _layer(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> int:
    """What one layer keeps that is not recomputed."""
    if _takes_fast(config, "layers"):
        return _fused_layer(config, spec, layout)
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    length, tensor, tokens = config.train.sequence_length, layout.tensor, _tokens(config, layout)
    size = _compute_bytes(config)
    attention = size * tokens * 3 * (queries + keys) // tensor
    if config.engine.recompute != "selective":
        if layout.context > 1:
            attention = size * tokens * 2 * (queries + keys * layout.context) // tensor
        if layout.context > 1 or config.data.document_mask:
            masks = layout.micro_batch_size if config.data.document_mask else 1
            attention += size * masks * length * length // layout.context
        attention += _FP32 * tokens * spec.num_attention_heads // tensor
    rotation = size * 4 * length // layout.context * spec.head_dim
    feed_forward = size * tokens * 5 * spec.ffn_hidden_size // tensor
    return 4 * _residual(config, spec, layout) + rotation + attention + feed_forward
