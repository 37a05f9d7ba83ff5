"""Megatron-core's names and weight layouts, and Hugging Face's: the translation both ways.

Megatron keys are those of `model.sharded_state_dict(metadata={"non_homogeneous_layers": True})`, as they stand in
our manifests. Its local layer spec saves the two norms of a layer under the name of the Linear they feed
(`linear_qkv.layer_norm_weight`), whatever the module is called; the module's own name is understood too.
Rotary embedding rotates halves on both sides, so no rows are permuted within a head.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.model.spec import ModelSpec

EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
OUTPUT = "output_layer.weight"

_INPUT_NORM = "self_attention.linear_qkv.layer_norm_weight"
_MLP_NORM = "mlp.linear_fc1.layer_norm_weight"
_QKV = "self_attention.linear_qkv.weight"
_FC1 = "mlp.linear_fc1.weight"
_ALIASES = {"input_layernorm.weight": _INPUT_NORM, "pre_mlp_layernorm.weight": _MLP_NORM}

# Hugging Face names by Megatron name, within a layer, in the order tensors are streamed.
_LAYER = {
    _INPUT_NORM: ("input_layernorm.weight",),
    _QKV: ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    _MLP_NORM: ("post_attention_layernorm.weight",),
    _FC1: ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
_OUTSIDE = {EMBEDDING: "model.embed_tokens.weight", FINAL_NORM: "model.norm.weight", OUTPUT: "lm_head.weight"}
_LAYER_KEY = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def megatron_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Global shape of every Megatron tensor, in streaming order (embedding, layers, final norm, output layer)."""
    hidden, ffn = spec.hidden_size, spec.ffn_hidden_size
    layer = {
        _INPUT_NORM: (hidden,),
        _QKV: (spec.qkv_size, hidden),
        "self_attention.linear_proj.weight": (hidden, spec.num_attention_heads * spec.head_dim),
        _MLP_NORM: (hidden,),
        _FC1: (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.padded_vocab_size, hidden)}
    for index in range(spec.num_layers):
        shapes |= {f"decoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not spec.tie_embeddings:
        shapes[OUTPUT] = (spec.padded_vocab_size, hidden)
    return shapes


def canonical_key(key: str) -> str:
    """The key as `megatron_shapes` spells it; norms under their module's own name are renamed, others returned."""
    match = _LAYER_KEY.fullmatch(key)
    if match is None:
        return key
    return f"decoder.layers.{match[1]}.{_ALIASES.get(match[2], match[2])}"


def huggingface_names(key: str) -> tuple[str, ...]:
    """Names of the Hugging Face tensors that a Megatron tensor holds.

    Raises:
        CheckpointError: no such tensor in a LLaMA-style model.
    """
    match = _LAYER_KEY.fullmatch(canonical_key(key))
    if match is not None and match[2] in _LAYER:
        return tuple(f"model.layers.{match[1]}.{name}" for name in _LAYER[match[2]])
    if key in _OUTSIDE:
        return (_OUTSIDE[key],)
    raise CheckpointError(
        f"Tensor {key!r} has no place in a Hugging Face LLaMA model. Export only checkpoints of this model family."
    )


def to_huggingface(key: str, tensor: Tensor, spec: ModelSpec) -> list[tuple[str, Tensor]]:
    """Cuts one Megatron tensor into Hugging Face's.

    Args:
        key: Megatron key.
        tensor: the whole tensor, of its global shape, any dtype.
        spec: the model.

    Returns:
        (name, contiguous tensor) pairs; padded vocabulary rows are gone. Values are bitwise those given.

    Raises:
        CheckpointError: unknown key, or a shape that is not the model's.
    """
    names = huggingface_names(key)
    _check_shape(key, tensor, megatron_shapes(spec).get(canonical_key(key)))
    part = canonical_key(key).split(".", 3)[-1]
    if key in (EMBEDDING, OUTPUT):
        pieces = [tensor[: spec.vocab_size]]
    elif part == _QKV:
        per_group = spec.num_attention_heads // spec.num_query_groups
        grouped = tensor.view(spec.num_query_groups, per_group + 2, spec.head_dim, spec.hidden_size)
        pieces = [grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1]]
        pieces = [piece.reshape(-1, spec.hidden_size) for piece in pieces]
    elif part == _FC1:
        pieces = list(tensor.chunk(2))
    else:
        pieces = [tensor]
    return [(name, piece.contiguous()) for name, piece in zip(names, pieces, strict=True)]


def megatron_tensor(key: str, get: Callable[[str], Tensor], spec: ModelSpec) -> Tensor:
    """Builds one Megatron tensor from those of a Hugging Face LLaMA model.

    Args:
        key: its name; one of `megatron_shapes`.
        get: returns the Hugging Face tensor of a name, any dtype.
        spec: the model.

    Returns:
        A tensor of its global shape; padded vocabulary rows are zero. Values are bitwise those given.

    Raises:
        CheckpointError: a tensor whose shape is not the model's.
    """
    key = canonical_key(key)
    shape, names = megatron_shapes(spec)[key], huggingface_names(key)
    tensors = [get(name) for name in names]
    part = key.split(".", 3)[-1]
    if key in (EMBEDDING, OUTPUT):
        (tensor,) = tensors
        _check_shape(names[0], tensor, (spec.vocab_size, spec.hidden_size))
        padding = tensor.new_zeros(spec.padded_vocab_size - spec.vocab_size, spec.hidden_size)
        return torch.cat([tensor, padding])
    if part == _QKV:
        kv_size = spec.num_query_groups * spec.head_dim
        sizes = (spec.num_attention_heads * spec.head_dim, kv_size, kv_size)
        for name, piece, size in zip(names, tensors, sizes, strict=True):
            _check_shape(name, piece, (size, spec.hidden_size))
        grouped = [piece.view(spec.num_query_groups, -1, spec.head_dim, spec.hidden_size) for piece in tensors]
        return torch.cat(grouped, dim=1).reshape(shape)
    if part == _FC1:
        for name, piece in zip(names, tensors, strict=True):
            _check_shape(name, piece, (spec.ffn_hidden_size, spec.hidden_size))
        return torch.cat(tensors)
    (tensor,) = tensors
    _check_shape(names[0], tensor, shape)
    return tensor


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    if shape is None or tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{name} has shape {tuple(tensor.shape)}, the model's configuration says {shape}. "
            f"Use the model configuration the weights were made with."
        )
