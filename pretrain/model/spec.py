"""Sizes of the model that follow from the configuration and the tokenizer: one place for the arithmetic.

Torch-free, so that plans, FLOP counts and checkpoint tools can use it on a login node. The padded vocabulary
depends on `vocab_multiple` alone, never on the layout: a checkpoint's global shapes must fit every layout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.model import ModelConfig
from pretrain.errors import ConfigError

_ACCEPTED: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A LLaMA-style decoder, completely sized.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the gate and of the up projection.
        num_attention_heads: query heads.
        num_query_groups: key/value heads.
        head_dim: width of one head, hidden_size / num_attention_heads.
        vocab_size: pieces of the tokenizer.
        padded_vocab_size: rows of the embedding; those from `vocab_size` on are never trained nor exported.
        rope_base: base of the rotary position embedding.
        norm_epsilon: epsilon of RMSNorm.
        init_std: standard deviation of initial weights.
        tie_embeddings: input embedding and output layer are one matrix.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int
    rope_base: float
    norm_epsilon: float
    init_std: float
    tie_embeddings: bool

    @classmethod
    def from_config(cls, config: ModelConfig, vocab_size: int) -> ModelSpec:
        """Derives every size.

        Args:
            config: the `model` group.
            vocab_size: pieces of the run's tokenizer.

        Raises:
            ConfigError: sizes that do not divide or are not positive; all problems at once.
        """
        groups = config.num_attention_heads if config.num_query_groups is None else config.num_query_groups
        problems = _problems(config, groups, vocab_size)
        if problems:
            raise ConfigError(problems)
        return cls(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            ffn_hidden_size=config.ffn_hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_query_groups=groups,
            head_dim=config.hidden_size // config.num_attention_heads,
            vocab_size=vocab_size,
            padded_vocab_size=-(-vocab_size // config.vocab_multiple) * config.vocab_multiple,
            rope_base=float(config.rope_base),
            norm_epsilon=float(config.norm_epsilon),
            init_std=float(config.init_std),
            tie_embeddings=config.tie_embeddings,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`, strict: for values that come from a file.

        Raises:
            ValueError: a field is missing, unknown, or of the wrong type.
        """
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        if values.keys() != fields.keys():
            raise ValueError(f"model fields differ: {sorted(values.keys() ^ fields.keys())}")
        for name, kind in fields.items():
            accepted = _ACCEPTED[kind]
            value: Any = values[name]
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
                raise ValueError(f"model.{name}={value!r} is not {kind}")
            if kind != "bool" and not 0 < values[name] < math.inf:
                raise ValueError(f"model.{name}={value} is not positive")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for manifests."""
        return dataclasses.asdict(self)

    def differences(self, trained: ModelSpec) -> list[str]:
        """Lists the fields in which this model differs from the one that the weights were trained for, a phrase each.

        `init_std` is left out because it only matters before training. The vocabulary is compared with the tokenizer
        elsewhere (`pretrain.vocabulary`).

        Args:
            trained: the model of the weights.
        """
        apart = ("vocab_size", "padded_vocab_size", "init_std", "head_dim")
        return [
            f"model.{name}={value}, but the weights were trained with {getattr(trained, name)}"
            for name, value in self.to_dict().items()
            if name not in apart and value != getattr(trained, name)
        ]

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_attention_heads + 2 * self.num_query_groups) * self.head_dim

    @property
    def num_matmul_parameters(self) -> int:
        """Weights that meet every token in a matrix product: all Linear weights and the output layer, no lookups.

        Counts the true vocabulary. With tied embeddings the shared matrix counts once, as the output layer.
        """
        attention = self.hidden_size * self.qkv_size + self.num_attention_heads * self.head_dim * self.hidden_size
        mlp = 3 * self.hidden_size * self.ffn_hidden_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters, with the true vocabulary: what the exported model has."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return self.num_matmul_parameters + norms + embedding

    def config_json(
        self, *, sequence_length: int, dtype: str = "float32", bos_token_id: int = 1, eos_token_id: int = 2
    ) -> dict[str, Any]:
        """Contents of `config.json` for Hugging Face's `LlamaForCausalLM`.

        Args:
            sequence_length: tokens the model was trained on at a time.
            dtype: of the exported weights, `float32` or `bfloat16`.
            bos_token_id: id of `<s>`.
            eos_token_id: id of `</s>`.
        """
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.init_std,
            "intermediate_size": self.ffn_hidden_size,
            "max_position_embeddings": sequence_length,
            "mlp_bias": False,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_query_groups,
            "pretraining_tp": 1,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": dtype,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }


def _problems(config: ModelConfig, groups: int, vocab_size: int) -> list[str]:
    sizes = {
        "model.num_layers": config.num_layers,
        "model.hidden_size": config.hidden_size,
        "model.ffn_hidden_size": config.ffn_hidden_size,
        "model.num_attention_heads": config.num_attention_heads,
        "model.num_query_groups": groups,
        "model.vocab_multiple": config.vocab_multiple,
        "the tokenizer's vocabulary": vocab_size,
    }
    problems = [f"{name}={size} must be at least 1." for name, size in sizes.items() if size < 1]
    if problems:
        return problems
    hidden, heads = config.hidden_size, config.num_attention_heads
    if hidden % heads:
        problems.append(
            f"model.num_attention_heads={heads} must divide model.hidden_size={hidden}; "
            f"{hidden} % {heads} = {hidden % heads}."
        )
    elif hidden // heads % 2:
        problems.append(
            f"model.hidden_size / model.num_attention_heads = {hidden // heads} must be even: "
            f"rotary embedding turns pairs."
        )
    if heads % groups:
        problems.append(
            f"model.num_query_groups={groups} must divide model.num_attention_heads={heads}; "
            f"{heads} % {groups} = {heads % groups}."
        )
    return problems
