"""The one model: Megatron-core's GPTModel, built from our layers, for every engine, device and purpose."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from pretrain.config.run import RunConfig
from pretrain.model.kernels import Kernels
from pretrain.model.layers import fp8, weight_gradient
from pretrain.model.layers.attention import CoreAttention
from pretrain.model.layers.block import FusedLayer
from pretrain.model.layers.loss import cross_entropy_and_log_z
from pretrain.model.layers.norm import FinalRMSNorm, FusedRMSNorm, RMSNorm
from pretrain.model.layers.output import OutputLayer
from pretrain.model.layers.rope import RotaryTable
from pretrain.model.spec import ModelSpec


class LlamaModel(GPTModel):
    """GPTModel whose loss never gives probability to the padding rows of the vocabulary."""

    true_vocab_size: int
    z_loss: float = 0.0

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pass of this rank's chunk.

        Args:
            input_ids: int64 [B, S]; this rank's part of S with context parallelism. Chunks after the first read
                their hidden states from the tensor that the schedule has set.
            position_ids: int64 [B, S].
            attention_mask: what `CoreAttention` takes.
            labels: int64 [B, S]; what the last chunk's loss is over.

        Returns:
            Hidden states of a chunk that is not the last; of the last one the losses as
            `compute_language_model_loss` gives them, without labels logits [B, S, V / tensor parallel].
        """
        if labels is None or self.config.kernels.loss == "whole":
            return super().forward(input_ids, position_ids, attention_mask, labels=labels)
        hidden = self.embedding(input_ids=input_ids, position_ids=position_ids) if self.pre_process else None
        rope = self.rotary_pos_emb(input_ids.shape[1] * self.config.context_parallel_size)
        hidden = self.decoder(hidden_states=hidden, attention_mask=attention_mask, rotary_pos_emb=rope)
        if not self.post_process:
            return hidden
        tied = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        return self.output_layer(hidden, weight=tied, labels=labels)[0]

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Per-token cross entropy, and z-loss where its coefficient is not 0.

        Args:
            labels: int64 [B, S].
            logits: [S, B, V / tensor parallel], this rank's part of the padded vocabulary.

        Returns:
            fp32 [B, S], nats; with z-loss [2, B, S]: cross entropy, then coefficient · log(Z)².
        """
        first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        real = self.true_vocab_size - first
        if real < logits.shape[-1]:
            column = torch.arange(logits.shape[-1], device=logits.device)
            logits = logits.masked_fill(column >= real, float("-inf"))
        if not self.z_loss:
            return super().compute_language_model_loss(labels, logits)
        group = parallel_state.get_tensor_model_parallel_group()
        loss_SB, log_z_SB = cross_entropy_and_log_z(logits, labels.T, group=group)
        return torch.stack([loss_SB.T, self.z_loss * log_z_SB.T.square()])


def transformer_config(
    config: RunConfig, spec: ModelSpec, kernels: Kernels | None = None, **engine_options: Any
) -> TransformerConfig:
    """Megatron's configuration of the model under this run's layout and precision, which our modules read too.

    Megatron's own fusions stay off: they need TransformerEngine or Apex, compile on first use, or (cross entropy) round
    gradients to bf16 even in fp32. The place of Apex's kernel is taken by `weight_gradient`.

    Args:
        config: the run's.
        spec: the model's derived sizes.
        kernels: what computes each part; None: the plain ones.
        engine_options: further fields of Megatron's.
    """
    kernels = kernels or Kernels()
    parallel = config.parallel
    dtype = torch.bfloat16 if config.precision.compute == "bf16" else torch.float32
    if kernels.weight_gradients == "accumulated":
        weight_gradient.install()
    found = TransformerConfig(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        ffn_hidden_size=spec.ffn_hidden_size,
        num_attention_heads=spec.num_attention_heads,
        num_query_groups=spec.num_query_groups,
        kv_channels=spec.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=spec.norm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        # Not only draws weights (we set our own): it also marks them tensor-parallel, without which Megatron takes
        # them for copies and leaves them out of the gradient norm, silently.
        perform_initialization=True,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=kernels.weight_gradients == "accumulated",
        cross_entropy_loss_fusion=False,
        calculate_per_token_loss=True,
        cuda_graph_impl="local" if kernels.cuda_graphs else "none",
        **engine_options,
    )
    found.kernels = kernels
    return found


def recompute_options(config: RunConfig, kernels: Kernels) -> dict[str, Any]:
    """What Megatron computes again in backward instead of keeping it; fused layers see to theirs themselves."""
    if config.engine.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if config.engine.recompute == "selective" and not kernels.recompute:
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def build_chunks(config: RunConfig, spec: ModelSpec, megatron: TransformerConfig) -> list[LlamaModel]:
    """This rank's model chunks (several with virtual pipeline stages), weights not yet set.

    Every rank calls it after the process groups exist.
    """
    layer, norm = _layer_spec(config.engine.transformer_engine, megatron.kernels)
    virtual = config.parallel.virtual_pipeline
    stages: list[int | None] = list(range(virtual)) if virtual > 1 else [None]
    return [_build_chunk(config, spec, megatron, layer, norm, stage) for stage in stages]


def _layer_spec(transformer_engine: bool, kernels: Kernels) -> tuple[ModuleSpec, type]:
    """Specification of a layer, and the norm after the last one.

    All specifications hold the same parameters under the same names in checkpoints; attention is ours in all.
    """
    if transformer_engine:
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = get_gpt_layer_with_transformer_engine_spec(), TENorm  # norms are part of the Linears they feed
    else:
        layer, norm, inner = get_gpt_layer_local_spec(normalization="RMSNorm"), RMSNorm, RMSNorm
        if kernels.layers == "fused":
            layer.module, norm, inner = FusedLayer, FinalRMSNorm, FusedRMSNorm
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = inner
    layer.submodules.self_attention.submodules.core_attention = CoreAttention
    return layer, norm


def _build_chunk(
    config: RunConfig,
    spec: ModelSpec,
    megatron: TransformerConfig,
    layer: ModuleSpec,
    norm: type,
    stage: int | None,
) -> LlamaModel:
    layers = get_num_layers_to_build(megatron, vp_stage=stage)
    chunk = LlamaModel(
        megatron,
        TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm),
        vocab_size=spec.padded_vocab_size,
        max_sequence_length=config.train.sequence_length,
        position_embedding_type="rope",
        rotary_base=spec.rope_base,
        share_embeddings_and_output_weights=spec.tie_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        vp_stage=stage,
    )
    # Megatron makes these itself, and marks their weights: what is exchanged is the class alone.
    if megatron.kernels.layers == "fused":
        chunk.rotary_pos_emb.__class__ = RotaryTable
    if megatron.kernels.loss == "chunked" and chunk.post_process:
        chunk.output_layer.__class__ = OutputLayer
        chunk.output_layer.true_vocab_size, chunk.output_layer.z_loss = spec.vocab_size, config.optimizer.z_loss
    if megatron.kernels.fp8:
        for one in chunk.decoder.layers:
            fp8.convert(one)
    chunk.true_vocab_size = spec.vocab_size
    chunk.z_loss = config.optimizer.z_loss
    return chunk
