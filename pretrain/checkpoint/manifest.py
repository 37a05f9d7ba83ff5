"""The manifest: what a checkpoint holds and where each piece lies. A folder without a valid one is no checkpoint.

JSON with a sha256 of its own body, read strictly: whatever is in the file, reading ends in a `Manifest` or in a
`CheckpointError`. File names follow from kind and rank and are never taken from the text, and nothing here or
anywhere in this package unpickles.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.blocks import KINDS
from pretrain.checkpoint.coverage import Piece, coverage_problem
from pretrain.checkpoint.reference import Reference
from pretrain.checkpoint.shards import BYTES_PER_ELEMENT, shard_name
from pretrain.durable import replace_file
from pretrain.errors import CheckpointError, ConfigError
from pretrain.model.spec import ModelSpec

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMeta:
    """Everything of a run besides tensors that a checkpoint records.

    Attributes:
        optimizer_step: updates Adam has done (bias correction); less than the run's step where updates were skipped.
        run_state: `RunState.state_dict()`.
        config_hash: hash of the resolved configuration.
        identity_hash: hash of what must not change when a run is resumed.
        model: sizes of the model.
        sequence_length: tokens a sequence is trained on.
        tokenizer_fingerprint: hash of the tokenizer's model file.
        layout: layout, engine and software versions, for the reader of the file; nothing depends on it.
        reference: what the live model said to fixed prompts, which an export is held against; None if not asked.
    """

    optimizer_step: int
    run_state: dict[str, Any]
    config_hash: str
    identity_hash: str
    model: ModelSpec
    sequence_length: int
    tokenizer_fingerprint: str
    layout: dict[str, Any]
    reference: Reference | None = None


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """Where one chunk lies: in the whole model, and in the files of its rank.

    Attributes:
        key: global tensor.
        offset: where its block begins in the tensor.
        shape: extent of the block.
        start: flat element of the block at which the chunk begins.
        numel: elements.
        rank: whose files hold it.
        at_element: element of those files' data at which it begins, the same in every kind.
        digests: xxh3 per kind, in the manifest's order of kinds.
    """

    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    numel: int
    rank: int
    at_element: int
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The files of one rank, one per kind.

    Attributes:
        num_elements: fp32 values in each.
        head_bytes: header length per kind.
        head_digests: xxh3 of the header per kind.
    """

    num_elements: int
    head_bytes: tuple[int, ...]
    head_digests: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        step: optimizer steps of the run.
        kinds: what is stored; all of `KINDS`, or `("param",)` once moments were dropped.
        meta: run state, hashes, model, software.
        tensors: global shape by key.
        files: per rank.
        chunks: every chunk of every rank.
    """

    step: int
    kinds: tuple[str, ...]
    meta: CheckpointMeta
    tensors: dict[str, tuple[int, ...]]
    files: tuple[FileRecord, ...]
    chunks: tuple[ChunkRecord, ...]

    @property
    def is_resumable(self) -> bool:
        """Whether the moments are there too, so that training can go on."""
        return self.kinds == KINDS

    @property
    def optimizer_step(self) -> int:
        """Updates Adam has done."""
        return self.meta.optimizer_step

    def file_bytes(self, kind: str, rank: int) -> int:
        """Exact size of one shard file."""
        record = self.files[rank]
        return record.head_bytes[self.kinds.index(kind)] + record.num_elements * BYTES_PER_ELEMENT

    @property
    def total_bytes(self) -> int:
        """Size of all shard files."""
        return sum(self.file_bytes(kind, rank) for kind in self.kinds for rank in range(len(self.files)))

    def with_kinds(self, kinds: Sequence[str]) -> Manifest:
        """The same checkpoint with fewer kinds."""
        keep = [self.kinds.index(kind) for kind in kinds]
        files = tuple(
            FileRecord(f.num_elements, tuple(f.head_bytes[i] for i in keep), tuple(f.head_digests[i] for i in keep))
            for f in self.files
        )
        chunks = tuple(
            ChunkRecord(
                c.key, c.offset, c.shape, c.start, c.numel, c.rank, c.at_element, tuple(c.digests[i] for i in keep)
            )
            for c in self.chunks
        )
        return Manifest(
            step=self.step, kinds=tuple(kinds), meta=self.meta, tensors=self.tensors, files=files, chunks=chunks
        )

    def write(self, folder: Path) -> None:
        """Puts the manifest into `folder`, atomically and durably."""
        replace_file(folder / MANIFEST_NAME, self.to_text())

    def to_text(self) -> str:
        """The file's text, one line."""
        meta = {name: getattr(self.meta, name) for name in CheckpointMeta.__slots__}
        meta["model"] = self.meta.model.to_dict()
        meta["reference"] = None if self.meta.reference is None else self.meta.reference.to_json()
        body = _canonical(
            {
                "format": FORMAT_VERSION,
                "step": self.step,
                "kinds": self.kinds,
                "meta": meta,
                "tensors": self.tensors,
                "files": [[f.num_elements, f.head_bytes, f.head_digests] for f in self.files],
                "chunks": [chunk_to_json(c) for c in self.chunks],
            }
        )
        return f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}","body":{body}}}\n'

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks the manifest of a checkpoint folder.

        Raises:
            CheckpointError: none there, or anything in it is not as it must be.
        """
        path = folder / MANIFEST_NAME
        try:
            return cls.from_text(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            problem = "there is none, so the save was never completed"
        except OSError as error:
            problem = str(error)
        except ConfigError as error:
            problem = str(error)
        except (ValueError, RecursionError) as error:  # not JSON, not text, or not our fields
            problem = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: not a usable manifest: {problem}. Use another checkpoint of the run.")

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """Inverse of `to_text`.

        Raises:
            ValueError: the text is not a manifest of this format, or is not consistent.
        """
        document = _typed(json.loads(text), dict, "the document")
        body = _get(document, "body", dict)
        if hashlib.sha256(_canonical(body).encode()).hexdigest() != _get(document, "sha256", str):
            raise ValueError("sha256 does not match the body: the file was damaged or edited")
        if _get(body, "format", int) != FORMAT_VERSION:
            raise ValueError(f"format {body['format']}, this version reads {FORMAT_VERSION}")
        kinds = tuple(_get(body, "kinds", list))
        if kinds not in (KINDS, KINDS[:1]):
            raise ValueError(f"kinds {kinds} are neither {KINDS} nor {KINDS[:1]}")
        tensors = {key: _sizes(shape, key) for key, shape in _get(body, "tensors", dict).items()}
        manifest = cls(
            step=_count(_get(body, "step", int), "step"),
            kinds=kinds,
            meta=_meta_from_json(_get(body, "meta", dict)),
            tensors=tensors,
            files=tuple(_file_from_json(entry, len(kinds)) for entry in _get(body, "files", list)),
            chunks=tuple(chunk_from_json(entry, len(kinds)) for entry in _get(body, "chunks", list)),
        )
        manifest.check()
        return manifest

    def check(self) -> None:
        """Checks that chunks cover every tensor exactly once and fill their files exactly once.

        Raises:
            ValueError: they do not; the first tensor or file is named.
        """
        problem = coverage_problem(
            self.tensors, (Piece(c.key, c.offset, c.shape, c.start, c.numel) for c in self.chunks)
        )
        if problem is not None:
            raise ValueError(problem)
        ends = [0] * len(self.files)
        for chunk in sorted(self.chunks, key=lambda c: (c.rank, c.at_element)):
            if chunk.rank >= len(self.files) or chunk.at_element != ends[chunk.rank]:
                raise ValueError(f"{chunk.key}: its place in the files of rank {chunk.rank} is wrong")
            ends[chunk.rank] += chunk.numel
        for rank, (end, record) in enumerate(zip(ends, self.files, strict=True)):
            if end != record.num_elements:
                raise ValueError(f"{shard_name('param', rank)}: {record.num_elements} elements, chunks fill {end}")


def chunk_to_json(chunk: ChunkRecord) -> list[Any]:
    """A compact JSON form: one array per chunk, in the order of the fields."""
    return [getattr(chunk, name) for name in ChunkRecord.__slots__]


def chunk_from_json(entry: Any, num_kinds: int) -> ChunkRecord:
    """Inverse of `chunk_to_json`.

    Raises:
        ValueError: the array is not a chunk.
    """
    fields = _typed(entry, list, "chunk")
    if len(fields) != len(ChunkRecord.__slots__):
        raise ValueError(f"a chunk has {len(fields)} fields, not {len(ChunkRecord.__slots__)}")
    key, offset, shape, start, numel, rank, at_element, digests = fields
    return ChunkRecord(
        _typed(key, str, "chunk key"),
        _sizes(offset, key),
        _sizes(shape, key),
        _count(start, key),
        _count(numel, key),
        _count(rank, key),
        _count(at_element, key),
        _digests(digests, num_kinds),
    )


def _file_from_json(entry: Any, num_kinds: int) -> FileRecord:
    fields = _typed(entry, list, "file")
    if len(fields) != 3:
        raise ValueError(f"a file entry has {len(fields)} fields, not 3")
    head_bytes = _sizes(fields[1], "header bytes")
    if len(head_bytes) != num_kinds:
        raise ValueError(f"{len(head_bytes)} header sizes for {num_kinds} kinds")
    return FileRecord(_count(fields[0], "elements"), head_bytes, _digests(fields[2], num_kinds))


def _meta_from_json(values: dict[str, Any]) -> CheckpointMeta:
    kinds: dict[str, type] = {
        "optimizer_step": int,
        "run_state": dict,
        "config_hash": str,
        "identity_hash": str,
        "model": dict,
        "sequence_length": int,
        "tokenizer_fingerprint": str,
        "layout": dict,
    }
    if values.keys() != kinds.keys() | {"reference"}:
        raise ValueError(f"meta fields differ: {sorted(values.keys() ^ (kinds.keys() | {'reference'}))}")
    fields = {name: _get(values, name, kind) for name, kind in kinds.items()}
    _count(fields["optimizer_step"], "meta.optimizer_step")
    fields["model"] = ModelSpec.from_dict(fields["model"])
    if values["reference"] is not None:
        fields["reference"] = Reference.from_json(_get(values, "reference", dict))
    return CheckpointMeta(**fields)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _get(values: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in values:
        raise ValueError(f"{name!r} is missing")
    return _typed(values[name], kind, name)


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _count(value: Any, name: str) -> int:
    if _typed(value, int, name) < 0:
        raise ValueError(f"{name} has {value}, which is negative")
    return int(value)


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    sizes = tuple(_count(size, name) for size in _typed(value, list, name))
    if not sizes:
        raise ValueError(f"{name} has no axis")
    return sizes


def _digests(value: Any, num_kinds: int) -> tuple[str, ...]:
    digests = tuple(_typed(value, list, "digests"))
    if len(digests) != num_kinds or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests):
        raise ValueError(f"digests {digests} are not {num_kinds} xxh3 values")
    return digests
