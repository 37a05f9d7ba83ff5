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
from pretrain.model.layers.attention import CoreAttention
from pretrain.model.layers.loss import cross_entropy_and_log_z
from pretrain.model.layers.norm import RMSNorm
from pretrain.model.spec import ModelSpec


class LlamaModel(GPTModel):
    """GPTModel whose loss never gives probability to the padding rows of the vocabulary."""

    true_vocab_size: int
    z_loss: float = 0.0

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


def transformer_config(config: RunConfig, spec: ModelSpec, **engine_options: Any) -> TransformerConfig:
    """Megatron's configuration of the model under this run's layout and precision.

    Fusions stay off: they need TransformerEngine or Apex, compile on first use, or (cross entropy) round
    gradients to bf16 even in fp32.
    """
    parallel = config.parallel
    dtype = torch.bfloat16 if config.precision.compute == "bf16" else torch.float32
    return TransformerConfig(
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
        gradient_accumulation_fusion=False,
        cross_entropy_loss_fusion=False,
        calculate_per_token_loss=True,
        **engine_options,
    )


def recompute_options(config: RunConfig) -> dict[str, Any]:
    """Which activations are computed again in backward instead of kept."""
    if config.engine.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if config.engine.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def build_chunks(config: RunConfig, spec: ModelSpec, megatron: TransformerConfig) -> list[LlamaModel]:
    """This rank's model chunks (several with virtual pipeline stages), weights not yet set.

    Every rank calls it after the process groups exist.
    """
    layer, norm = _layer_spec(config.engine.transformer_engine)
    virtual = config.parallel.virtual_pipeline
    stages: list[int | None] = list(range(virtual)) if virtual > 1 else [None]
    return [_build_chunk(config, spec, megatron, layer, norm, stage) for stage in stages]


def _layer_spec(transformer_engine: bool) -> tuple[ModuleSpec, type]:
    """Megatron's specification of a layer, and the norm after the last one.

    Both specifications hold the same parameters under the same names in checkpoints; attention is ours in both.
    """
    if transformer_engine:
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = get_gpt_layer_with_transformer_engine_spec(), TENorm  # norms are part of the Linears they feed
    else:
        layer, norm = get_gpt_layer_local_spec(normalization="RMSNorm"), RMSNorm
        layer.submodules.input_layernorm = norm
        layer.submodules.pre_mlp_layernorm = norm
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
    chunk.true_vocab_size = spec.vocab_size
    chunk.z_loss = config.optimizer.z_loss
    return chunk
