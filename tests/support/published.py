"""Folders as Amber and OpenLLaMA were published: pickles in shards, and the keys that transformers 4.28 wrote."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TAKEN_OVER = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps")
TAKEN_OVER += ("vocab_size",)


def publish(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
    shards: int = 2,
    length_key: str = "max_position_embeddings",
) -> dict[str, Tensor]:
    """What `save_pretrained` wrote then, rotary frequencies among the tensors.

    Args:
        folder: to make.
        weights: of the model, by their Hugging Face names.
        config: the model's `config.json` of today.
        dtype: of the files.
        shards: files; one has no index.
        length_key: `max_sequence_length` is what the first conversions of LLaMA had, and Amber took over.

    Returns:
        The model's weights as they are in the files.
    """
    folder.mkdir()
    stored = {name: value.detach().to(dtype) for name, value in weights.items()}
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1 / 10000.0 ** (torch.arange(0, head_dim, 2) / head_dim)
    buffers = [f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(config["num_hidden_layers"])]
    everything = {**stored, **dict.fromkeys(buffers, frequencies)}
    names = list(everything)
    size = -(-len(names) // shards)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin" if shards > 1 else "pytorch_model.bin"
        part = names[number * size : (number + 1) * size]
        torch.save(collections.OrderedDict((name, everything[name]) for name in part), folder / file)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in everything.values())}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    own = {name: config[name] for name in TAKEN_OVER}
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        own["num_key_value_heads"] = config["num_key_value_heads"]
    old = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        length_key: config["max_position_embeddings"],
        "model_type": "llama",
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype)[6:],
        "transformers_version": "4.28.0.dev0",
        "use_cache": True,
    }
    (folder / "config.json").write_text(json.dumps(own | old))
    (folder / "generation_config.json").write_text('{"_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2}')
    return stored


def publish_export(folder: Path, export: Path, **options: Any) -> Path:
    """An export of ours in that form: no `tokenizer.json`, and the tokenizer's class as it was spelled."""
    from safetensors.torch import load_file

    publish(
        folder, load_file(export / "model.safetensors"), json.loads((export / "config.json").read_text()), **options
    )
    (folder / "tokenizer.model").write_bytes((export / "tokenizer.model").read_bytes())
    tokenizer = {"add_bos_token": False, "bos_token": "", "eos_token": "", "tokenizer_class": "LLaMATokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder
