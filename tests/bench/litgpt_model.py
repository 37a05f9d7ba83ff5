"""litgpt's form of the model that contenders train; imported where litgpt is installed."""

from __future__ import annotations

from typing import Any

from litgpt.model import Config


def litgpt_config(shape: Any, *, num_query_groups: int) -> Config:
    """A LLaMA of a benchmark's shape."""
    return Config(
        name="bench",
        block_size=shape.sequence_length,
        n_layer=shape.num_layers,
        n_head=shape.num_attention_heads,
        n_query_groups=num_query_groups,
        n_embd=shape.hidden_size,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.ffn_hidden_size,
    )
