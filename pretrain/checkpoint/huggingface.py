"""A checkpoint out as a Hugging Face folder, for `LlamaForCausalLM`; the way in is `huggingface_source.py`.

Weights are streamed, one shard in memory at a time. An export is written beside its place, held against what the
live model said (`parity.py`), and renamed: a folder that has the final name is complete and says the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint.card import card_text, origin_text
from pretrain.checkpoint.digests import CARD_NAME, not_of_a_release, write_digests
from pretrain.checkpoint.gates import vocabulary_problem
from pretrain.checkpoint.huggingface_source import INDEX, SINGLE
from pretrain.checkpoint.parity import Parity, measure_parity
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.reference import VERSION, Reference
from pretrain.checkpoint.tokenizer_files import SentencePieceModel, read_sentencepiece, write_tokenizer_files
from pretrain.checkpoint.tokenizer_parity import ALLOW_MISMATCH, tokenizer_mismatch
from pretrain.durable import replacing_folder
from pretrain.errors import CheckpointError
from pretrain.model.names import canonical_key, huggingface_names, megatron_shapes, to_huggingface
from pretrain.model.spec import ModelSpec
from pretrain.places import listed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Export:
    """A folder that has been published.

    Attributes:
        folder: where it lies.
        parity: how far it is from the live model; None where there was no reference to measure against.
    """

    folder: Path
    parity: Parity | None


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
    tolerance: float | None = None,
    allow_tokenizer_mismatch: bool = False,
) -> Export:
    """Exports a checkpoint's weights, held against its reference; see `export_weights` for arguments and errors."""
    meta = reader.manifest.meta
    return export_weights(
        huggingface_weights(reader),
        meta.model,
        out,
        tokenizer_model=tokenizer_model,
        sequence_length=meta.sequence_length,
        dtype=dtype,
        add_bos=add_bos,
        card=card or origin_text(reader.manifest),
        max_shard_bytes=max_shard_bytes,
        reference=meta.reference,
        tolerance=tolerance,
        allow_tokenizer_mismatch=allow_tokenizer_mismatch,
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
    reference: Reference | None = None,
    tolerance: float | None = None,
    allow_tokenizer_mismatch: bool = False,
) -> Export:
    """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load. Call it on one rank.

    Args:
        weights: every tensor under its Hugging Face name, once, in any order.
        spec: the model.
        out: the folder; one that exists is replaced as a whole.
        tokenizer_model: the run's SentencePiece model.
        sequence_length: tokens the model was trained on at a time.
        dtype: of the files, `float32` (bitwise the master weights) or `bfloat16` (rounded to nearest even).
        add_bos: the tokenizer puts `<s>` before a text, as it was in training.
        card: Markdown about the run, for the model card.
        max_shard_bytes: size of a weights file, and memory needed; a larger tensor gets a file of its own.
        reference: what the live model said; None, or one of another version, leaves parity unmeasured.
        tolerance: largest difference from it, in nats of log-probability; None goes by precision and spread.
        allow_tokenizer_mismatch: publish although `AutoTokenizer` gives other ids than training; the card says so.

    Raises:
        CheckpointError: weights or tokenizer are not the model's, the files do not say what the live model said, the
            tokenizer files give other ids and nobody allowed that, or the disk refused; `out` is as it was.
        TokenizerError: the tokenizer cannot be read.
    """
    if others := not_of_a_release(out):
        raise CheckpointError(
            f"{out} would be replaced by the export, but it holds {listed(others)}, which no export wrote. Name a "
            "folder that does not exist, or an earlier export."
        )
    if dtype not in DTYPES:
        raise CheckpointError(f"Export dtype {dtype!r} is unknown. Use one of {', '.join(DTYPES)}.")
    tokenizer = read_sentencepiece(tokenizer_model)
    if len(tokenizer.pieces) != spec.vocab_size:
        raise CheckpointError(
            f"{tokenizer_model} has {len(tokenizer.pieces)} pieces, the model {spec.vocab_size}. Name the run's own."
        )
    try:
        with replacing_folder(out) as folder:
            _write_weights(_converted(weights, spec, DTYPES[dtype]), folder, max_shard_bytes)
            write_tokenizer_files(tokenizer_model, folder, add_bos=add_bos)
            _write_configs(folder, spec, tokenizer, sequence_length, dtype)
            problem = vocabulary_problem(folder, num_pieces=len(tokenizer.pieces))
            if problem is not None:
                raise CheckpointError(f"{out} was not exported: {problem}. The checkpoint is untouched.")
            mismatch = tokenizer_mismatch(folder)
            if mismatch is not None and not allow_tokenizer_mismatch:
                raise CheckpointError(
                    f"{out} was not exported: {mismatch} {ALLOW_MISMATCH} The checkpoint is untouched."
                )
            parity = _parity(folder, out, spec, reference, dtype, tolerance)
            text = card_text(
                out.name,
                spec,
                sequence_length=sequence_length,
                dtype=dtype,
                tokenizer_mismatch=mismatch,
                parity=parity,
                origin=card,
            )
            (folder / CARD_NAME).write_text(text, "utf-8")
            write_digests(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{out} was not exported: {error}. Free space or choose another folder; the checkpoint is untouched."
        ) from error
    return Export(out, parity)


def _parity(
    folder: Path, out: Path, spec: ModelSpec, reference: Reference | None, dtype: str, tolerance: float | None
) -> Parity | None:
    if reference is None or reference.version != VERSION:
        return None
    try:
        return measure_parity(folder, spec, reference, dtype=dtype, tolerance=tolerance)
    except CheckpointError as error:
        raise CheckpointError(f"{out} was not exported: {error} The checkpoint is untouched.") from error


def _converted(
    weights: Iterable[tuple[str, Tensor]], spec: ModelSpec, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Casts, and makes sure that every name of the model comes exactly once and that all values are numbers."""
    missing = {name for key in megatron_shapes(spec) for name in huggingface_names(key)}
    for name, tensor in weights:
        if name not in missing:
            raise CheckpointError(f"Weight {name!r} is not in this model, or came twice; nothing was exported.")
        missing.remove(name)
        converted = tensor.detach().to("cpu", dtype)
        if not bool(torch.isfinite(converted).all()):
            raise CheckpointError(
                f"{name} has values that are not finite as {str(dtype)[6:]}; nothing was exported. The model has "
                f"diverged: export an earlier checkpoint."
            )
        yield name, converted
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
        (folder / "1.tmp").rename(folder / SINGLE)
        return
    names = {number: f"model-{number:05d}-of-{num_files:05d}.safetensors" for number in range(1, num_files + 1)}
    for number, name in names.items():
        (folder / f"{number}.tmp").rename(folder / name)
    weight_map = {name: names[number] for name, number in file_of.items()}
    _write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _write_configs(
    folder: Path, spec: ModelSpec, tokenizer: SentencePieceModel, sequence_length: int, dtype: str
) -> None:
    config = spec.config_json(
        sequence_length=sequence_length, dtype=dtype, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id
    )
    _write_json(folder / "config.json", config)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "do_sample": False}
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
