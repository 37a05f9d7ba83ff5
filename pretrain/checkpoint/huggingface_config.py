"""What a Hugging Face LLaMA folder says of its model: sizes, context, number format, whether prompts begin with BOS.

What our model cannot compute is refused by name, all of it at once: a score of another model than the folder's
would look like any other number. Weights are read by `huggingface_source.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.huggingface_source import json_object
from pretrain.config.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.model.spec import ModelSpec

CONFIG_NAME = "config.json"
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "partial_rotary_factor": (1.0, None),
}
"""Allowed values of what is no size; None is what a folder without the key means."""
_LLAMA_TOKENIZERS = ("LlamaTokenizer", "LlamaTokenizerFast", "LLaMATokenizer")  # the last: before transformers 4.28
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class HuggingFaceModel:
    """A folder's model.

    Attributes:
        spec: its sizes.
        max_length: `max_position_embeddings`, the longest input in tokens.
        compute: `fp32` for float32 weights, else `bf16`.
        add_bos: whether the tokenizer puts `<s>` before a text; None where the folder does not say.
    """

    spec: ModelSpec
    max_length: int
    compute: str
    add_bos: bool | None


def read_huggingface_config(folder: Path) -> HuggingFaceModel:
    """Reads `config.json` and, if there is one, `tokenizer_config.json`.

    Raises:
        CheckpointError: not readable, not a LLaMA, or with anything our model does not compute.
    """
    config = json_object(folder / CONFIG_NAME)
    problems = list(_problems(config))
    if problems:
        raise CheckpointError(f"{folder} cannot be scored:\n" + "\n".join(f"- {problem}" for problem in problems))
    rope = config.get("rope_parameters") or {}  # where transformers 5 writes it
    try:
        model = ModelConfig(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=config["num_attention_heads"],
            num_query_groups=config.get("num_key_value_heads"),
            rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            init_std=float(config.get("initializer_range") or 0.02),
        )
        spec = ModelSpec.from_config(model, config["vocab_size"])
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} does not describe a LLaMA: {error}") from error
    dtype = config.get("dtype") or config.get("torch_dtype")
    return HuggingFaceModel(
        spec=spec,
        max_length=_max_length(config),
        compute="fp32" if dtype in (None, "float32") else "bf16",
        add_bos=_add_bos(folder),
    )


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    for name, allowed in _FIXED.items():
        value = config.get(name)
        if value not in allowed:
            yield f"{name}={value!r} is not supported; it must be {allowed[0]!r}."
    for name in _SIZES:
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{name}={value!r} is not a size."
    length = _max_length(config)
    if not isinstance(length, int) or length < 2:
        yield f"max_position_embeddings={length!r} is not a length in tokens."
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        yield f"scaled rotary embedding (rope_type={kind!r}) is not supported."
    heads, hidden, head_dim = (config.get(key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
    if head_dim and isinstance(heads, int) and isinstance(hidden, int) and heads * head_dim != hidden:
        yield f"head_dim={head_dim} is not hidden_size / num_attention_heads = {hidden} / {heads}."


def _max_length(config: Mapping[str, Any]) -> Any:
    """The first conversions of LLaMA, whose `config.json` others took over, wrote `max_sequence_length`."""
    return config.get("max_position_embeddings", config.get("max_sequence_length", 2048))


def _add_bos(folder: Path) -> bool | None:
    """As `transformers` has it: the key, else LLaMA's own tokenizer classes put it."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return None
    values = json_object(path)
    if isinstance(values.get("add_bos_token"), bool):
        return bool(values["add_bos_token"])
    return True if values.get("tokenizer_class") in _LLAMA_TOKENIZERS else None
