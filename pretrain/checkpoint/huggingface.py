"""Hugging Face folders: a checkpoint out as `LlamaForCausalLM`, and such a model in.

Both ways are streamed, one tensor or one shard in memory at a time. An export is written beside its place and
renamed, so a folder that has the final name is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.shards import fsync_path
from pretrain.checkpoint.source import TensorSource
from pretrain.checkpoint.tokenizer_files import SentencePieceModel, read_sentencepiece, write_tokenizer_files
from pretrain.errors import CheckpointError
from pretrain.model.names import canonical_key, huggingface_names, megatron_shapes, megatron_tensor, to_huggingface
from pretrain.model.spec import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def huggingface_weights(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
    """Weights of a checkpoint under Hugging Face names, fp32, one Megatron tensor in memory at a time.

    Raises:
        CheckpointError: a tensor of the model is missing or damaged.
    """
    spec = reader.manifest.meta.model
    stored = {canonical_key(key): key for key in reader.manifest.tensors}
    for key in megatron_shapes(spec):
        yield from to_huggingface(key, reader.tensor(stored.get(key, key)), spec)


def export_checkpoint(
    reader: CheckpointReader,
    out: Path,
    *,
    tokenizer_model: Path,
    dtype: str = "float32",
    add_bos: bool = False,
    card: str = "",
    max_shard_bytes: int = 4 * 10**9,
) -> Path:
    """Exports the weights of a checkpoint; see `export_weights` for arguments and errors."""
    meta = reader.manifest.meta
    return export_weights(
        huggingface_weights(reader),
        meta.model,
        out,
        tokenizer_model=tokenizer_model,
        sequence_length=meta.sequence_length,
        dtype=dtype,
        add_bos=add_bos,
        card=card or f"Step {reader.manifest.step:_}, {meta.run_state.get('tokens', 0):_} tokens.",
        max_shard_bytes=max_shard_bytes,
    )


def export_weights(
    weights: Iterable[tuple[str, Tensor]],
    spec: ModelSpec,
    out: Path,
    *,
    tokenizer_model: Path,
    sequence_length: int,
    dtype: str = "float32",
    add_bos: bool = False,
    card: str = "",
    max_shard_bytes: int = 4 * 10**9,
) -> Path:
    """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load. Call it on one rank.

    Args:
        weights: every tensor under its Hugging Face name, once, in any order.
        spec: the model.
        out: the folder; one that exists is replaced as a whole.
        tokenizer_model: the run's SentencePiece model.
        sequence_length: tokens the model was trained on at a time.
        dtype: of the files, `float32` (bitwise the master weights) or `bfloat16` (rounded to nearest even).
        add_bos: the tokenizer puts `<s>` before a text, as it was in training.
        card: Markdown added to the model card.
        max_shard_bytes: size of a weights file, and memory needed; a larger tensor gets a file of its own.

    Returns:
        `out`.

    Raises:
        CheckpointError: weights or tokenizer are not the model's, or the disk refused; `out` is as it was.
        TokenizerError: the tokenizer cannot be read.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"Export dtype {dtype!r} is unknown. Use one of {', '.join(DTYPES)}.")
    tokenizer = read_sentencepiece(tokenizer_model)
    if len(tokenizer.pieces) != spec.vocab_size:
        raise CheckpointError(
            f"{tokenizer_model} has {len(tokenizer.pieces)} pieces, the model {spec.vocab_size}. Name the run's own."
        )
    temporary = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_weights(_converted(weights, spec, DTYPES[dtype]), temporary, max_shard_bytes)
        exact = write_tokenizer_files(tokenizer_model, temporary, add_bos=add_bos)
        _write_configs(temporary, spec, tokenizer, sequence_length, dtype)
        (temporary / "README.md").write_text(_card(out.name, spec, sequence_length, dtype, card, exact), "utf-8")
        for path in (*temporary.iterdir(), temporary):
            fsync_path(path)
        _replace(temporary, out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{out} was not exported: {error}. Free space or choose another folder; the checkpoint is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


class HuggingFaceSource(TensorSource):
    """A Hugging Face LLaMA folder, read as Megatron tensors; one tensor is held at a time. Each rank opens its own."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """Opens the folder; weights are mapped when they are read.

        Args:
            folder: has `config.json` and safetensors weights, whole or sharded.
            spec: the model it must be.

        Raises:
            CheckpointError: the folder holds another model, or no safetensors weights.
        """
        self.path, self._spec = folder, spec
        config = _json_object(folder / "config.json")
        problems = _config_problems(config, spec)
        if problems:
            raise CheckpointError(f"{folder} is another model: {'; '.join(problems)}. Change `model` to match.")
        self._file_of: dict[str, str] | None = None
        if (folder / _INDEX).exists():
            file_of = _json_object(folder / _INDEX).get("weight_map")
            if not isinstance(file_of, dict):
                raise CheckpointError(f"{folder / _INDEX} has no weight_map. Download or export the model again.")
            self._file_of = file_of
        elif not (folder / _SINGLE).exists():
            raise CheckpointError(f"{folder} has no safetensors weights. Save it with save_pretrained of transformers.")
        self._opened: dict[str, Any] = {}
        self._held: tuple[str, np.ndarray] | None = None

    def shape(self, key: str) -> tuple[int, ...]:  # noqa: D102 - see TensorSource
        shapes = megatron_shapes(self._spec)
        if canonical_key(key) not in shapes:
            raise CheckpointError(f"{self.path} has no tensor {key!r}: it is another model.")
        return shapes[canonical_key(key)]

    def region(self, key: str, kind: str, offset: Sequence[int], out: np.ndarray) -> None:  # noqa: D102
        if kind != "param":
            raise CheckpointError(f"{self.path} holds weights only, not {kind}: it can start a run, not resume one.")
        if self._held is None or self._held[0] != key:
            self._held = (key, megatron_tensor(key, self._get, self._spec).numpy())
        out[...] = self._held[1][tuple(slice(o, o + e) for o, e in zip(offset, out.shape, strict=True))]

    def _get(self, name: str) -> Tensor:
        file = _SINGLE if self._file_of is None else str(self._file_of.get(name, ""))
        if not file.endswith(".safetensors") or Path(file).name != file:
            raise CheckpointError(f"{self.path} has no tensor {name!r}. Its model differs, or files are missing.")
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(self.path / file, "pt")
            tensor: Tensor = self._opened[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path / file}: {name} cannot be read: {error}.") from error
        return tensor.float()


def import_huggingface(folder: Path, spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Reads a Hugging Face LLaMA model as Megatron tensors, one at a time.

    Yields:
        (Megatron key, fp32 tensor of its global shape) in `megatron_shapes` order.

    Raises:
        CheckpointError: the folder holds another model, lacks a tensor, or cannot be read.
    """
    source = HuggingFaceSource(folder, spec)
    for key in megatron_shapes(spec):
        yield key, megatron_tensor(key, source._get, spec)


def _converted(
    weights: Iterable[tuple[str, Tensor]], spec: ModelSpec, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Casts, and makes sure that every name of the model comes exactly once."""
    missing = {name for key in megatron_shapes(spec) for name in huggingface_names(key)}
    for name, tensor in weights:
        if name not in missing:
            raise CheckpointError(f"Weight {name!r} is not in this model, or came twice; nothing was exported.")
        missing.remove(name)
        yield name, tensor.detach().to("cpu", dtype)
    if missing:
        raise CheckpointError(f"{len(missing)} weights did not come, {sorted(missing)[:3]} among them.")


def _write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path, max_shard_bytes: int) -> None:
    file_of: dict[str, int] = {}
    held: dict[str, Tensor] = {}
    held_bytes = total_bytes = num_files = 0

    def flush() -> None:
        nonlocal held_bytes, num_files
        num_files += 1
        save_file(held, folder / f"{num_files}.tmp", metadata={"format": "pt"})
        file_of.update(dict.fromkeys(held, num_files))
        held.clear()
        held_bytes = 0

    for name, tensor in weights:
        if held and held_bytes + tensor.nbytes > max_shard_bytes:
            flush()
        # A view would be written with the whole storage behind it, or be refused.
        held[name] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if num_files == 1:
        (folder / "1.tmp").rename(folder / _SINGLE)
        return
    names = {number: f"model-{number:05d}-of-{num_files:05d}.safetensors" for number in range(1, num_files + 1)}
    for number, name in names.items():
        (folder / f"{number}.tmp").rename(folder / name)
    weight_map = {name: names[number] for name, number in file_of.items()}
    _write_json(folder / _INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _write_configs(
    folder: Path, spec: ModelSpec, tokenizer: SentencePieceModel, sequence_length: int, dtype: str
) -> None:
    config = spec.config_json(
        sequence_length=sequence_length, dtype=dtype, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id
    )
    _write_json(folder / "config.json", config)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "do_sample": False}
    _write_json(folder / "generation_config.json", generation)


def _card(name: str, spec: ModelSpec, sequence_length: int, dtype: str, extra: str, exact: bool) -> str:
    note = (
        ""
        if exact
        else (
            "\nThe tokenizer is not of the kind whose conversion is exact: for the ids of training use `sentencepiece` "
            "with `tokenizer.model`.\n"
        )
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A LLaMA-style base model: {spec.num_parameters:_} parameters, {spec.num_layers} layers, width {spec.hidden_size},
{spec.num_attention_heads} heads, {spec.num_query_groups} key/value heads, vocabulary {spec.vocab_size:_}, trained on
sequences of {sequence_length:_} tokens. Weights are {dtype}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
{note}
{extra}
"""


def _replace(temporary: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    fsync_path(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _config_problems(config: dict[str, Any], spec: ModelSpec) -> list[str]:
    wanted = spec.config_json(sequence_length=1)
    compared = {
        name: wanted[name]
        for name in (
            *("model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
            *("num_key_value_heads", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "hidden_act"),
            *("attention_bias", "mlp_bias", "rope_theta"),
        )
    }
    rope = config.get("rope_parameters") or {}  # where transformers 5 writes it
    found: dict[str, Any] = {
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 10000.0,
    }
    found |= {"num_key_value_heads": config.get("num_attention_heads"), "hidden_act": "silu"}
    found |= {name: value for name, value in {**config, **rope}.items() if name in compared and value is not None}
    problems = [
        f"{name} is {found.get(name)}, not {value}" for name, value in compared.items() if found.get(name) != value
    ]
    scaling = rope if rope else config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        problems.append(f"scaled rotary embedding {scaling} is not supported")
    return problems


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Name a Hugging Face model folder.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object. Name a Hugging Face model folder.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
