"""A Hugging Face LLaMA folder as a source of weights: what a run starts from, and what the parity gate reads.

Tensors are mapped and read one at a time, from safetensors, or from the pickles of older folders (`pickled.py`).
Writing such a folder is `huggingface.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.checkpoint.pickled import read_pickled
from pretrain.checkpoint.source import TensorSource
from pretrain.errors import CheckpointError
from pretrain.model.names import canonical_key, megatron_shapes, megatron_tensor
from pretrain.model.spec import ModelSpec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLED_INDEX, _PICKLED_SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"


class HuggingFaceSource(TensorSource):
    """A Hugging Face LLaMA folder, read as Megatron tensors; one tensor is held at a time. Each rank opens its own."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """Opens the folder; weights are mapped when they are read.

        Args:
            folder: has `config.json` and weights, whole or sharded: safetensors, or else `pytorch_model*.bin`. Tensors
                that are not the model's, such as `rotary_emb.inv_freq` of older folders, are not looked at.
            spec: the model it must be.

        Raises:
            CheckpointError: the folder holds another model, or no weights.
        """
        self.path, self._spec = folder, spec
        config = json_object(folder / "config.json")
        problems = _config_problems(config, spec)
        if problems:
            remedy = "Change `model` to match"
            if any(problem.startswith("vocab_size") for problem in problems):
                remedy += "; vocab_size follows from the tokenizer, so set tokenizer.path to the model's own"
            raise CheckpointError(f"{folder} is another model: {'; '.join(problems)}. {remedy}.")
        names = (INDEX, SINGLE, _PICKLED_INDEX, _PICKLED_SINGLE)
        self._weights = next((name for name in names if (folder / name).exists()), "")
        if not self._weights:
            raise CheckpointError(
                f"{folder} has no weights ({SINGLE} or {_PICKLED_SINGLE}, or shards with their index). "
                f"Download it whole, or save it with save_pretrained of transformers."
            )
        self._file_of: dict[str, str] | None = None
        if self._weights.endswith(".json"):
            file_of = json_object(folder / self._weights).get("weight_map")
            if not isinstance(file_of, dict):
                raise CheckpointError(
                    f"{folder / self._weights} has no weight_map. Download or export the model again."
                )
            self._file_of = file_of
        self._opened: dict[str, Callable[[str], Tensor]] = {}
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
            self._held = (key, megatron_tensor(key, self._finite_weight, self._spec).numpy())
        out[...] = self._held[1][tuple(slice(o, o + e) for o, e in zip(offset, out.shape, strict=True))]

    def weight(self, name: str) -> Tensor:
        """A whole tensor under its Hugging Face name, fp32, on CPU.

        Raises:
            CheckpointError: it is not there, or cannot be read.
        """
        file = self._weights if self._file_of is None else str(self._file_of.get(name, ""))
        if not file.endswith((".safetensors", ".bin")) or Path(file).name != file:
            raise CheckpointError(f"{self.path} has no tensor {name!r}. Its model differs, or files are missing.")
        try:
            if file not in self._opened:
                self._opened[file] = _reader(self.path / file)
            tensor = self._opened[file](name)
        except KeyError:
            raise CheckpointError(f"{self.path / file} has no tensor {name!r}. Its model differs.") from None
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path / file}: {name} cannot be read: {error}.") from error
        return tensor.float()

    def _finite_weight(self, name: str) -> Tensor:
        """Nothing that is computed with NaN tells which tensor it came from."""
        tensor = self.weight(name)
        if not tensor.isfinite().all():
            raise CheckpointError(f"{self.path}: {name} has values that are not finite. Download the folder again.")
        return tensor


def _reader(path: Path) -> Callable[[str], Tensor]:
    """Gives tensors of one file by name."""
    read: Callable[[str], Tensor]
    read = read_pickled(path).__getitem__ if path.suffix == ".bin" else safe_open(path, "pt").get_tensor
    return read


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
    rope = _rope_settings(config)
    found: dict[str, Any] = {
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
    }
    found |= {"num_key_value_heads": config.get("num_attention_heads"), "hidden_act": "silu"}
    found |= {name: value for name, value in {**config, **rope}.items() if name in compared and value is not None}
    problems = [
        f"{name} is {found.get(name)}, not {value}" for name, value in compared.items() if found.get(name) != value
    ]
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        problems.append(f"scaled rotary embedding {rope} is not supported")
    return problems


def _rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters`, where transformers 5 writes it, else `rope_scaling`; {} where neither is set.

    Raises:
        CheckpointError: it is no JSON object.
    """
    name = next((key for key in ("rope_parameters", "rope_scaling") if config.get(key)), "")
    found = config.get(name, {})
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: {name}={found!r} is not a JSON object. Download the folder again.")
    return found


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a Hugging Face folder; a CheckpointError that names it where it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Name a Hugging Face model folder.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object. Name a Hugging Face model folder.")
    return values
