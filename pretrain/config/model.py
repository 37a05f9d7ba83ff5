"""Sizes of the LLaMA-style decoder. Derived sizes live in `pretrain.model.spec`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    num_layers: int = 32
    """Transformer layers."""
    hidden_size: int = 4096
    """Width of the residual stream."""
    ffn_hidden_size: int = 11008
    """Width of the SwiGLU branch (gate and up projections each)."""
    num_attention_heads: int = 32
    """Query heads."""
    num_query_groups: int | None = None
    """Key/value heads; null is one per query head (multi-head attention)."""
    rope_base: float = 10000.0
    """Base of the rotary position embedding."""
    norm_epsilon: float = 1e-6
    """Epsilon of RMSNorm."""
    tie_embeddings: bool = False
    """Whether input embedding and output layer share one matrix."""
    init_std: float = 0.02
    """Standard deviation of every Linear and Embedding weight at start; norms start at one."""
    init_depth_scaled: bool = False
    """Output projections of attention and SwiGLU start with init_std / sqrt(2 x num_layers), as Megatron's do."""
    vocab_multiple: int = 128
    """The embedding has this multiple of rows, whatever the layout, so that checkpoints fit every layout."""
