"""Reading a checkpoint under any layout, and choosing one that can be trusted.

Files are mapped and only the bytes a rank needs are read; every chunk is checked against its digest when first
touched. Which checkpoint to resume from is decided by looking at the folders themselves: the `latest` file is for
people. Nothing is written or moved here.
"""

from __future__ import annotations

import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from pretrain.checkpoint.blocks import boxes
from pretrain.checkpoint.manifest import MANIFEST_NAME, ChunkRecord, Manifest
from pretrain.checkpoint.shards import BYTES_PER_ELEMENT, damage_in_shard, names_in, shard_name
from pretrain.checkpoint.source import TensorSource
from pretrain.errors import CheckpointError
from pretrain.locate import checkpoints_of

LATEST_NAME = "latest"
_FOLDER = re.compile(r"step_(\d{8,18})")
_MAX_OPEN_MAPS = 64
_REMEDY = "Restore the folder from a copy, or use another checkpoint of the run."


def folder_name(step: int) -> str:
    """Name of a checkpoint folder."""
    return f"step_{step:08d}"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One checkpoint folder, as far as manifest and file sizes tell.

    Attributes:
        path: the folder.
        step: step in its name.
        manifest: None where the folder is not a usable checkpoint.
        problem: why it is not; None where it is.
    """

    path: Path
    step: int
    manifest: Manifest | None
    problem: str | None


class CheckpointReader(TensorSource):
    """Random access to the fp32 state in one checkpoint. Not thread-safe; each rank opens its own."""

    def __init__(self, path: Path, verify: bool = True) -> None:
        """Opens a checkpoint: reads the manifest and checks the size of every file.

        Args:
            path: the folder.
            verify: check the digest of each chunk when it is first read.

        Raises:
            CheckpointError: the manifest is not valid, or a file is missing or of the wrong size.
        """
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        problem = _size_problem(self.path, self.manifest)
        if problem is not None:
            raise CheckpointError(f"{problem}. {_REMEDY}")
        self._verify = verify
        self._maps: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._checked: set[tuple[str, int, int]] = set()
        self._chunks_of: dict[str, list[ChunkRecord]] = {key: [] for key in self.manifest.tensors}
        for chunk in self.manifest.chunks:
            self._chunks_of[chunk.key].append(chunk)

    def shape(self, key: str) -> tuple[int, ...]:  # noqa: D102 - see TensorSource
        if key not in self.manifest.tensors:
            raise CheckpointError(f"{self.path} has no tensor {key!r}: it was made with another model.")
        return self.manifest.tensors[key]

    def tensor(self, key: str, kind: str = "param") -> Tensor:
        """A whole tensor, fp32, on CPU."""
        shape = self.shape(key)
        out = np.empty(shape, np.float32)
        self.region(key, kind, (0,) * len(shape), out)
        return torch.from_numpy(out)

    def region(self, key: str, kind: str, offset: Sequence[int], out: np.ndarray) -> None:  # noqa: D102
        self.shape(key)
        if kind not in self.manifest.kinds:
            raise CheckpointError(
                f"{self.path} holds {', '.join(self.manifest.kinds)} only, not {kind}: optimizer state was dropped "
                f"(checkpoint.keep). Resume from a newer checkpoint."
            )
        missing = out.size
        low, high = tuple(offset), tuple(o + e for o, e in zip(offset, out.shape, strict=True))
        for chunk in self._chunks_of[key]:
            chunk_high = (o + s for o, s in zip(chunk.offset, chunk.shape, strict=True))
            if any(o >= h or c <= lo for o, c, lo, h in zip(chunk.offset, chunk_high, low, high, strict=True)):
                continue
            missing -= self._copy_overlap(chunk, kind, low, high, out)
        if missing:
            raise CheckpointError(f"{key} in {self.path}: {missing} elements of the region at {low} are outside it.")

    def _copy_overlap(
        self, chunk: ChunkRecord, kind: str, low: tuple[int, ...], high: tuple[int, ...], out: np.ndarray
    ) -> int:
        copied, data = 0, None
        for flat, inner, extent in boxes(chunk.shape, chunk.start, chunk.start + chunk.numel):
            box_low = [o + i for o, i in zip(chunk.offset, inner, strict=True)]
            first = [max(a, b) for a, b in zip(low, box_low, strict=True)]
            last = [min(a, b + e) for a, b, e in zip(high, box_low, extent, strict=True)]
            if any(a >= b for a, b in zip(first, last, strict=True)):
                continue
            if data is None:
                data = self._data(chunk, kind)
            source = data[flat - chunk.start : flat - chunk.start + math.prod(extent)].reshape(extent)
            target = out[tuple(slice(a - o, b - o) for a, b, o in zip(first, last, low, strict=True))]
            target[...] = source[tuple(slice(a - o, b - o) for a, b, o in zip(first, last, box_low, strict=True))]
            copied += target.size
        return copied

    def _data(self, chunk: ChunkRecord, kind: str) -> np.ndarray:
        """The chunk's values, mapped and checked."""
        data = self._map(kind, chunk.rank)[chunk.at_element : chunk.at_element + chunk.numel]
        mark = (kind, chunk.rank, chunk.at_element)
        if self._verify and mark not in self._checked:
            found, expected = xxhash.xxh3_64_hexdigest(data.data), chunk.digests[self.manifest.kinds.index(kind)]
            if found != expected:
                raise CheckpointError(
                    f"{self.path / shard_name(kind, chunk.rank)}: {chunk.key} is damaged (digest {found}, expected "
                    f"{expected}). {_REMEDY}"
                )
            self._checked.add(mark)
        return data

    def _map(self, kind: str, rank: int) -> np.ndarray:
        if (kind, rank) not in self._maps:
            problem = _file_problem(self.path, self.manifest, kind, rank)  # mapping a file cut short would crash
            if problem is not None:
                raise CheckpointError(f"{problem}. {_REMEDY}")
            head = self.manifest.files[rank].head_bytes[self.manifest.kinds.index(kind)]
            count = self.manifest.files[rank].num_elements
            mapped = np.memmap(self.path / shard_name(kind, rank), np.float32, "r", head, (count,))
            self._maps[kind, rank] = mapped.view(np.ndarray)
            if len(self._maps) > _MAX_OPEN_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end((kind, rank))
        return self._maps[kind, rank]


def damage_in(path: Path) -> str | None:
    """Reads a whole checkpoint and compares sizes and digests; memory is bounded.

    Returns:
        What is wrong, naming file and tensor; None if every byte is as it was written.
    """
    try:
        manifest = Manifest.read(path)
    except CheckpointError as error:
        return str(error)
    problem = _size_problem(path, manifest)
    if problem is not None:
        return problem
    pieces: list[list[ChunkRecord]] = [[] for _ in manifest.files]
    for chunk in manifest.chunks:
        pieces[chunk.rank].append(chunk)

    def check(kind_index: int, rank: int) -> str | None:
        file = manifest.files[rank]
        shard = path / shard_name(manifest.kinds[kind_index], rank)
        tensors = [
            (c.key, c.at_element * BYTES_PER_ELEMENT, c.numel * BYTES_PER_ELEMENT, c.digests[kind_index])
            for c in pieces[rank]
        ]
        try:
            found = damage_in_shard(shard, (file.head_bytes[kind_index], file.head_digests[kind_index]), tensors)
        except OSError as error:
            found = str(error)
        return None if found is None else f"{shard}: {found}"

    jobs = [(index, rank) for index in range(len(manifest.kinds)) for rank in range(len(manifest.files))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return next((found for found in pool.map(lambda job: check(*job), jobs) if found is not None), None)


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Checkpoint folders of a run, oldest first, with what manifest and file sizes say; digests are not read."""
    found = []
    for name in names_in(root):
        match = _FOLDER.fullmatch(name)
        if match is None:  # .writing, .damaged-N, latest
            continue
        path, step = root / name, int(match[1])
        try:
            manifest = Manifest.read(path)
        except CheckpointError as error:
            found.append(CheckpointInfo(path, step, None, str(error)))
            continue
        problem = _size_problem(path, manifest)
        if problem is None and manifest.step != step:
            problem = f"{path}: the manifest is of step {manifest.step}"
        found.append(CheckpointInfo(path, step, manifest if problem is None else None, problem))
    return sorted(found, key=lambda info: info.step)


def find_checkpoint(
    path: Path, *, step: int | None = None, verify_digests: bool = True, say: Callable[[str], None] = print
) -> Path:
    """The one checkpoint that a path names. Call it on one rank: it may read whole checkpoints.

    Args:
        path: a checkpoint, or a run directory or a folder of checkpoints, whose newest one is meant.
        step: of a run: this checkpoint, not the newest.
        verify_digests: read every byte of a candidate.
        say: told which one was chosen, and why newer ones were passed over.

    Raises:
        CheckpointError: there is none that can be read.
    """
    if (path / MANIFEST_NAME).is_file():
        return path
    root = checkpoints_of(path)
    found = list_checkpoints(root)
    if step is not None:
        if step not in {info.step for info in found}:
            steps = ", ".join(str(info.step) for info in found) or "none"
            raise CheckpointError(f"step={step}: {root} has no {folder_name(step)}. Steps that are there: {steps}.")
        return root / folder_name(step)
    for info in reversed(found):
        problem = info.problem or (damage_in(info.path) if verify_digests else None)
        if problem is None:
            say(f"{info.path} is taken, the newest checkpoint of {path}.")
            return info.path
        say(f"Passed over {info.path.name}: {problem}")
    raise CheckpointError(
        f"{path} is no checkpoint and holds none that can be read. Name a run directory, its folder of checkpoints, or "
        f"one checkpoint."
    )


def newest_valid(
    root: Path, *, verify_digests: bool = True, log: Callable[[str], None] = lambda message: None
) -> Path | None:
    """The newest checkpoint that training can be resumed from.

    Call it on one rank and tell the others: it may read whole checkpoints.

    Args:
        root: folder of the run's checkpoints; need not exist.
        verify_digests: read every byte of a candidate.
        log: told, in one sentence each, why a newer folder was passed over.

    Returns:
        The folder, or None.
    """
    for info in reversed(list_checkpoints(root)):
        problem = info.problem
        if problem is None and info.manifest is not None and not info.manifest.is_resumable:
            problem = f"{info.path}: holds weights only, optimizer state was dropped (checkpoint.keep)"
        if problem is None and verify_digests:
            problem = damage_in(info.path)
        if problem is None:
            return info.path
        log(f"Passed over {info.path.name}: {problem}")
    return None


def _size_problem(path: Path, manifest: Manifest) -> str | None:
    for kind in manifest.kinds:
        for rank in range(len(manifest.files)):
            problem = _file_problem(path, manifest, kind, rank)
            if problem is not None:
                return problem
    return None


def _file_problem(path: Path, manifest: Manifest, kind: str, rank: int) -> str | None:
    shard, expected = path / shard_name(kind, rank), manifest.file_bytes(kind, rank)
    try:
        size = shard.stat().st_size
    except OSError as error:
        return f"{shard}: {error.strerror}"
    return None if size == expected else f"{shard}: {size} bytes, expected {expected}"
