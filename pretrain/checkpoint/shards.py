"""One file of one rank, and writes that survive a power cut.

A shard is a valid safetensors file of 1-D fp32 tensors, one per chunk, so that any tool can open it. Its digests
(xxh3, 64 bit) find damage; they are no defence against somebody who can rewrite the manifest too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

BYTES_PER_ELEMENT = 4
_READ_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """What was written.

    Attributes:
        head_bytes: length of the safetensors header, its 8-byte length field included; data begins here.
        head_digest: xxh3 of the header.
        digests: xxh3 of each tensor's bytes, in order.
    """

    head_bytes: int
    head_digest: str
    digests: tuple[str, ...]


def shard_name(kind: str, rank: int) -> str:
    """File name of a rank's tensors of one kind."""
    return f"{kind}_{rank:05d}.safetensors"


def write_shard(path: Path, names: Sequence[str], sizes: Sequence[int], data: np.ndarray) -> WrittenShard:
    """Writes tensors that lie one after another; not yet durable (`pretrain.durable.sync`).

    Args:
        path: file to create or overwrite.
        names: tensor names, unique.
        sizes: elements of each.
        data: float32 [sum(sizes)].

    Raises:
        OSError: the disk refused.
    """
    header: dict[str, object] = {}
    at = 0
    for name, size in zip(names, sizes, strict=True):
        end = at + size * BYTES_PER_ELEMENT
        header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [at, end]}
        at = end
    assert len(header) == len(names) and at == data.nbytes, "chunk names repeat, or sizes do not add up"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    view, digests, at = data.view(np.uint8).data, [], 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(descriptor, memoryview(head))
        for size in sizes:
            part = view[at : at + size * BYTES_PER_ELEMENT]
            at += len(part)
            digests.append(xxhash.xxh3_64_hexdigest(part))
            _write_all(descriptor, part)
    finally:
        os.close(descriptor)
    return WrittenShard(len(head), xxhash.xxh3_64_hexdigest(head), tuple(digests))


def damage_in_shard(path: Path, head: tuple[int, str], pieces: Sequence[tuple[str, int, int, str]]) -> str | None:
    """Reads a whole shard in bounded memory and compares digests.

    Args:
        path: the file.
        head: bytes and digest of its header.
        pieces: (label, first byte after the header, bytes, digest) of each tensor.

    Returns:
        What is wrong, naming the tensor; None if nothing is.
    """
    buffer = memoryview(bytearray(_READ_BYTES))
    head_bytes, head_digest = head
    with path.open("rb", buffering=0) as file:
        for label, at, size, digest in (("header", -head_bytes, head_bytes, head_digest), *pieces):
            file.seek(head_bytes + at)
            hasher, left = xxhash.xxh3_64(), size
            while left:
                count = file.readinto(buffer[: min(left, _READ_BYTES)])
                if not count:
                    return f"{label}: the file ends {left} bytes early"
                hasher.update(buffer[:count])
                left -= count
            if hasher.hexdigest() != digest:
                return f"{label}: digest {hasher.hexdigest()}, expected {digest}"
    return None


def names_in(folder: Path) -> set[str]:
    """Names in a folder; empty if it does not exist or is a file.

    Network file systems may answer a question about one path from a stale cache; opening the folder asks anew.
    """
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]  # one call writes 2 GiB at most
