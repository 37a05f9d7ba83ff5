"""A transformer layer of few passes over memory: Megatron's modules and collectives, our functions between them."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from pretrain.model.layers.compiled import fast
from pretrain.model.layers.elementwise import norm_forward, release, rotated_heads, swiglu, swiglu_forward
from pretrain.model.layers.norm import FusedRMSNorm


class FusedLayer(TransformerLayer):
    """Drop-in for Megatron's layer with the same parameters; forward alone is ours.

    What it cannot do (cross attention, biases, dropout, experts, Megatron's inference) this model does not have.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any,
        *,
        rotary_pos_emb: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """One layer.

        Args:
            hidden_states: [S, B, H]; this rank's part of S with sequence parallelism.
            attention_mask: whatever `CoreAttention` takes.
            rotary_pos_emb: `RotaryTable`'s rows of these positions.

        Returns:
            As hidden_states; and nothing, where Megatron has the context of cross attention.
        """
        attention, mlp, kernels = self.self_attention, self.mlp, self.config.kernels
        residual, normed = self.input_layernorm(hidden_states)
        mixed, _bias = attention.linear_qkv(normed)
        self._release_norm(normed, mixed, self.input_layernorm, residual)
        query, key, value = rotated_heads(
            mixed,
            rotary_pos_emb,
            head_dim=self.config.kv_channels,
            heads_per_group=self.config.num_attention_heads // self.config.num_query_groups,
            compiled=kernels.compile,
        )
        out, _bias = attention.linear_proj(attention.core_attention(query, key, value, attention_mask))
        residual, normed = self.pre_mlp_layernorm(out, residual)
        gate_up, _bias = mlp.linear_fc1(normed)
        self._release_norm(normed, gate_up, self.pre_mlp_layernorm, residual)
        active, source = swiglu(gate_up, compiled=kernels.compile), gate_up.detach()
        out, _bias = mlp.linear_fc2(active)
        if self._recomputes():
            release(active, used_for=out, again=lambda: fast(swiglu_forward, kernels.compile)(source))
        return residual + out, None

    def _should_call_local_cudagraph(self, *args: Any, **kwargs: Any) -> bool:
        """Whether Megatron replays a graph: in steps that nobody watches; rows of scoring differ."""
        watched = self._forward_hooks or self.self_attention.core_attention._forward_pre_hooks
        trains = self.training and torch.is_grad_enabled() and not watched
        return trains and super()._should_call_local_cudagraph(*args, **kwargs)

    def _recomputes(self) -> bool:
        kernels = self.config.kernels  # in fp8 the products keep their own rounded inputs, and these are free already
        return kernels.recompute and not kernels.fp8 and torch.is_grad_enabled()

    def _release_norm(
        self, normed: torch.Tensor, used_for: torch.Tensor, norm: FusedRMSNorm, normed_of: torch.Tensor
    ) -> None:
        if self._recomputes():
            weight, source, again = norm.weight.detach(), normed_of.detach(), fast(norm_forward, norm.compiled)
            release(normed, used_for=used_for, again=lambda: again(source, weight, norm.epsilon)[0])
