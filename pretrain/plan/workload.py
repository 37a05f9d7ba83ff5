"""What throughput depends on: sizes of the model, the batch and how both are spread over devices. Plain numbers.

A `Workload` can describe runs of other frameworks too, which is how the model of `throughput.py` is held against
published figures; `workload_of` describes one of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.engine.build import footprint
from pretrain.engine.footprint import compute_bytes
from pretrain.engine.kernels import planned
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec
from pretrain.plan.memory import keeps_scores

FUSED = ("layers", "loss", "gradients", "optimizer")
"""Parts of a step that can be fused; `gradients`: their sum over microbatches is made in the product itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream, and of all query heads together.
        ffn_hidden_size: width of the feed-forward layer.
        num_attention_heads: query heads.
        num_query_groups: key/value heads.
        vocab_size: rows of the output layer.
        gated: LLaMA's block (SwiGLU, rotary embedding); False is GPT's (GELU, learned or linear positions).
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int
    gated: bool = True

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together."""
        return self.hidden_size // self.num_attention_heads * self.num_query_groups

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrices of one layer."""
        attention = 2 * self.hidden_size * (self.hidden_size + self.key_value_size)
        return attention + (3 if self.gated else 2) * self.hidden_size * self.ffn_hidden_size

    @property
    def output_parameters(self) -> int:
        """Weights of the output layer."""
        return self.vocab_size * self.hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One optimizer step and its layout.

    Attributes:
        shape: of the model.
        sequence_length: tokens of a sequence.
        micro_batch_size: sequences of one forward on a data-parallel rank.
        num_microbatches: of a step, on each data-parallel rank.
        data, tensor, pipeline, context: sizes of the process grid.
        virtual_pipeline: model chunks of a pipeline stage.
        sequence_parallel: activations between the tensor-parallel parts are split over their ranks.
        recompute: `none`; `selective`: attention; `elementwise`: norms, rotation and activations; `operators`: every
            second matrix product and all that is elementwise (torchtitan's selective checkpointing); `full`: the whole
            layer.
        sharding: what data-parallel ranks share out: `none`, `optimizer` (ZeRO-1), `gradients` (ZeRO-2), `parameters`
            (ZeRO-3, FSDP).
        shard_ranks: ranks that share one copy out, where these are not all of `data` (hybrid sharding).
        gather_bytes, gradient_bytes: of an element when parameters are gathered, and when gradients are reduced.
        optimizer_on_cpu: optimizer state in host memory, updated there; with sharded parameters these too.
        fused: the parts of a step, of `FUSED`, whose elementwise work is in fused or compiled kernels, not operation by
            operation.
        fused_norm: where layers are not, at least a norm is one kernel.
        scores: attention writes its scores to memory (before FlashAttention).
        masked: attention takes a mask and computes what this hides too; plain causal attention skips it.
        overlap_data, overlap_tensor: collectives of data and of tensor parallelism run beside computation.
        compute: `bf16` (or fp16) or `fp32`.
    """

    shape: Shape
    sequence_length: int
    micro_batch_size: int
    num_microbatches: int
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    sequence_parallel: bool = False
    recompute: str = "none"
    sharding: str = "optimizer"
    shard_ranks: int | None = None
    gather_bytes: int = 2
    gradient_bytes: int = 4
    optimizer_on_cpu: bool = False
    fused: tuple[str, ...] = FUSED
    fused_norm: bool = True
    scores: bool = False
    masked: bool = False
    overlap_data: bool = True
    overlap_tensor: bool = False
    compute: str = "bf16"

    @property
    def devices(self) -> int:
        """Of the job."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def tokens_per_step(self) -> int:
        """Over all ranks."""
        return self.data * self.num_microbatches * self.micro_batch_size * self.sequence_length

    @property
    def tokens(self) -> float:
        """Of one microbatch on one rank."""
        return self.micro_batch_size * self.sequence_length / self.context

    @property
    def element_bytes(self) -> int:
        """Of weights and activations."""
        return 2 if self.compute == "bf16" else 4

    @property
    def stage_layers(self) -> float:
        """Layers of a pipeline stage."""
        return self.shape.num_layers / self.pipeline


def workload_of(config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> Workload:
    """What a run of ours asks of its machines, in full steps after a batch ramp.

    Kernels and the engine's state are those that the plan of memory counts with. PyTorch's RMSNorm is one kernel.
    Attention is masked by position where its sequence is split over ranks, and by document where data asks for that.

    Args:
        config: engine, kernels, precision and sequence length count.
        spec: sizes of the model.
        layout: the process grid.
    """
    engine, kernels = config.engine, planned(config)
    state = footprint(config, layout, spec, stage=0)
    fused = {
        "layers": kernels.layers == "fused" and kernels.compile,
        "loss": kernels.loss == "chunked" and kernels.compile,
        "gradients": kernels.weight_gradients == "accumulated",
        "optimizer": state.fused_update,
    }
    return Workload(
        shape=Shape(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            ffn_hidden_size=spec.ffn_hidden_size,
            num_attention_heads=spec.num_attention_heads,
            num_query_groups=spec.num_query_groups,
            vocab_size=spec.padded_vocab_size,
        ),
        sequence_length=config.train.sequence_length,
        micro_batch_size=layout.micro_batch_size,
        num_microbatches=layout.num_microbatches,
        data=layout.data,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        virtual_pipeline=layout.virtual_pipeline,
        context=layout.context,
        sequence_parallel=config.parallel.sequence,
        recompute="elementwise" if kernels.recompute else engine.recompute,
        sharding=state.shared,
        optimizer_on_cpu=state.optimizer_on_host,
        gather_bytes=compute_bytes(config),
        fused=tuple(part for part, holds in fused.items() if holds),
        scores=keeps_scores(config),
        masked=layout.context > 1 or config.data.document_mask,
        overlap_data=engine.overlap_grad_reduce,
        compute=config.precision.compute,
    )
