"""What each rank tells rank 0 about its shards during a save: small JSON files that appear by rename.

They live only inside a `.writing` folder. A rank that fails leaves a note instead, so that the others learn the
reason at once and do not wait for the time limit.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.manifest import ChunkRecord, FileRecord, chunk_from_json, chunk_to_json
from pretrain.checkpoint.shards import WrittenShard, names_in, shard_name
from pretrain.durable import replace_file, sync
from pretrain.errors import CheckpointError

_POLL_SECONDS = (0.005, 0.25)
_MAX_NOTE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's shards.

    Attributes:
        rank: who wrote them.
        file: sizes and header digests.
        shapes: global shape of every tensor the rank holds a piece of.
        chunks: its pieces.
    """

    rank: int
    file: FileRecord
    shapes: dict[str, tuple[int, ...]]
    chunks: tuple[ChunkRecord, ...]

    @classmethod
    def of(
        cls,
        rank: int,
        num_elements: int,
        written: Sequence[WrittenShard],
        shapes: Mapping[str, tuple[int, ...]],
        chunks: Sequence[ChunkRecord],
    ) -> Part:
        """Collects what one rank wrote, one `WrittenShard` per kind."""
        heads = tuple(shard.head_bytes for shard in written), tuple(shard.head_digest for shard in written)
        return cls(rank, FileRecord(num_elements, *heads), dict(shapes), tuple(chunks))


def write(folder: Path, part: Part) -> None:
    """Puts a rank's part into the folder, whole or not at all."""
    values = {
        "file": [part.file.num_elements, part.file.head_bytes, part.file.head_digests],
        "shapes": part.shapes,
        "chunks": [chunk_to_json(chunk) for chunk in part.chunks],
    }
    replace_file(folder / _part_name(part.rank), json.dumps(values, separators=(",", ":")))


def report_failure(folder: Path, rank: int, kinds: Sequence[str], reason: str) -> None:
    """Frees this rank's space and leaves the reason for the others. Best effort: the disk may refuse it."""
    with contextlib.suppress(OSError):
        for kind in kinds:
            (folder / shard_name(kind, rank)).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        replace_file(folder / f"failed_{rank:05d}.txt", reason[:_MAX_NOTE_CHARACTERS])


def failures(folder: Path) -> dict[int, str]:
    """Reasons left by ranks that failed, by rank."""
    found = {}
    for name in sorted(names_in(folder)):
        if name.startswith("failed_") and name.endswith(".txt"):
            with contextlib.suppress(OSError, ValueError):
                found[int(name[7:-4])] = (folder / name).read_text(encoding="utf-8")
    return found


def wait_for_all(folder: Path, world_size: int, num_kinds: int, timeout_seconds: float) -> list[Part]:
    """Rank 0 waits until every rank has put its part in place.

    Raises:
        CheckpointError: a rank reported a failure, or did not finish in time.
    """
    wanted = {_part_name(rank) for rank in range(world_size)}
    deadline, pause = time.monotonic() + timeout_seconds, _POLL_SECONDS[0]
    while missing := wanted - names_in(folder):
        if reasons := failures(folder):
            text = "; ".join(f"rank {rank}: {reason}" for rank, reason in reasons.items())
            raise CheckpointError(f"{folder} cannot be published: {text}")
        if time.monotonic() > deadline:
            ranks = sorted(int(name[5:-5]) for name in missing)
            raise CheckpointError(
                f"{folder} cannot be published: ranks {ranks[:8]} did not finish their shards within "
                f"{timeout_seconds:g} s. Check that they run and that all ranks see the same file system."
            )
        time.sleep(pause)
        pause = min(2 * pause, _POLL_SECONDS[1])
    return [_read(folder, rank, num_kinds) for rank in range(world_size)]


def merged_shapes(received: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """Global shapes by key, in the order ranks first named them.

    Raises:
        CheckpointError: two ranks disagree about a shape.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in received:
        for key, shape in part.shapes.items():
            if shapes.setdefault(key, shape) != shape:
                raise CheckpointError(
                    f"{key} has shape {shape} on rank {part.rank} and {shapes[key]} on another. "
                    f"All ranks must run with the same configuration."
                )
    return shapes


def remove_all(folder: Path) -> None:
    """Removes parts once the manifest holds what they said, and makes the shards' names durable."""
    for name in names_in(folder):
        if name.startswith("part_") or name.endswith(".tmp"):
            (folder / name).unlink()
    sync(folder)


def _part_name(rank: int) -> str:
    return f"part_{rank:05d}.json"


def _read(folder: Path, rank: int, num_kinds: int) -> Part:
    values = json.loads((folder / _part_name(rank)).read_text(encoding="utf-8"))
    num_elements, head_bytes, head_digests = values["file"]
    return Part(
        rank,
        FileRecord(num_elements, tuple(head_bytes), tuple(head_digests)),
        {key: tuple(shape) for key, shape in values["shapes"].items()},
        tuple(chunk_from_json(entry, num_kinds) for entry in values["chunks"]),
    )
