"""One token shard, written as a stream: a `.bin/.idx` pair with the bytes that megatron-core's builder would write.

Its `IndexedDatasetBuilder` is not used: importing it costs 360 MB in every worker, it keeps the length of every
document in Python lists until the end, and what it has written cannot be continued. Here lengths wait in a file,
`.lengths`, and a shard can be reopened at any position it was made durable at. Layout:
megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from pretrain.errors import DataError

INDEX_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {"int32": 4, "uint16": 8}
_SMALLEST_INT32_VOCAB = 65_500  # megatron-core's DType.optimal_dtype
_BUFFER_BYTES = 1 << 20
_BLOCK_DOCUMENTS = 1 << 17
ENDINGS = (".bin", ".idx")
LENGTHS = ".lengths"


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that tokens of a vocabulary are stored in: uint16 where they fit, by megatron-core's own limit."""
    return np.dtype(np.uint16 if vocab_size < _SMALLEST_INT32_VOCAB else np.int32)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a shard ends.

    Attributes:
        documents: documents before it.
        tokens: tokens before it.
    """

    documents: int = 0
    tokens: int = 0


class ShardWriter:
    """Documents, one sequence each, to `<prefix>.bin` and, when closed, `<prefix>.idx`.

    Files appear with the first document; a shard without documents leaves none.
    """

    def __init__(self, prefix: Path, *, vocab_size: int, position: Position | None = None) -> None:
        """Starts a shard, or goes on with one at a position that `sync` gave.

        Args:
            prefix: its path without ending.
            vocab_size: decides the type tokens are stored in.
            position: what is behind it is cut off; None or zero starts anew.

        Raises:
            DataError: the files end before the position.
        """
        self.prefix = prefix
        self.dtype = token_dtype(vocab_size)
        start = position or Position()
        self.documents, self.tokens = start.documents, start.tokens
        self._bin: IO[bytes] | None = None
        self._lengths: IO[bytes] | None = None
        if start.documents:
            self._bin = _cut(_with(prefix, ".bin"), start.tokens * self.dtype.itemsize)
            self._lengths = _cut(_with(prefix, LENGTHS), 4 * start.documents)
        else:
            delete_shard(prefix)

    def add(self, *parts: np.ndarray) -> None:
        """Appends one document.

        Args:
            parts: its token ids in order, integers within the vocabulary; may be empty.
        """
        if self._bin is None or self._lengths is None:
            self._bin = _with(self.prefix, ".bin").open("wb", buffering=_BUFFER_BYTES)
            self._lengths = _with(self.prefix, LENGTHS).open("wb", buffering=_BUFFER_BYTES)
        length = 0
        for part in parts:
            if part.size:
                self._bin.write(part.astype(self.dtype, copy=False).data)
                length += part.size
        self._lengths.write(length.to_bytes(4, "little"))
        self.documents += 1
        self.tokens += length

    def sync(self) -> Position:
        """Makes what was added survive a crash of the machine, and says where it ends."""
        for stream in (self._bin, self._lengths):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())
        return Position(self.documents, self.tokens)

    def close(self) -> None:
        """Writes the index, durably. The lengths stay until `drop_lengths`, so that a kill here can be continued."""
        self.sync()
        self.abandon()
        if self.documents:
            _write_index(self.prefix, dtype=self.dtype, documents=self.documents)

    def abandon(self) -> None:
        """Closes the files as they are; what cannot be written any more, on a full disk, is not durable anyway."""
        for stream in (self._bin, self._lengths):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._bin = self._lengths = None


def delete_shard(prefix: Path) -> None:
    """Removes whatever there is of a shard."""
    for ending in (*ENDINGS, LENGTHS):
        _with(prefix, ending).unlink(missing_ok=True)


def drop_lengths(prefix: Path) -> None:
    """Removes what only a shard in the making needs."""
    _with(prefix, LENGTHS).unlink(missing_ok=True)


def _write_index(prefix: Path, *, dtype: np.dtype, documents: int) -> None:
    """Header, lengths (int32), byte offsets (int64) and document boundaries (int64), a block at a time."""
    with (
        open(_with(prefix, ".idx"), "wb", buffering=_BUFFER_BYTES) as out,
        open(_with(prefix, LENGTHS), "rb") as spilled,
    ):
        out.write(_HEADER.pack(INDEX_MAGIC, 1, _CODES[dtype.name], documents, documents + 1))
        while block := spilled.read(4 * _BLOCK_DOCUMENTS):
            out.write(block)
        spilled.seek(0)
        offset = 0
        while block := spilled.read(4 * _BLOCK_DOCUMENTS):
            ends = offset + np.cumsum(np.frombuffer(block, dtype="<i4"), dtype=np.int64) * dtype.itemsize
            out.write(np.concatenate(([offset], ends[:-1])).astype("<i8").tobytes())
            offset = int(ends[-1])
        for first in range(0, documents + 1, _BLOCK_DOCUMENTS):
            out.write(np.arange(first, min(first + _BLOCK_DOCUMENTS, documents + 1), dtype="<i8").tobytes())
        out.flush()
        os.fsync(out.fileno())


def _cut(path: Path, size: int) -> IO[bytes]:
    try:
        stream = path.open("r+b", buffering=_BUFFER_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path} is gone, of which {size} bytes were written.") from None
    found = stream.seek(0, os.SEEK_END)
    if found < size:
        stream.close()
        raise DataError(f"{path} ends at byte {found}, of which {size} were written.")
    stream.truncate(size)
    stream.seek(size)
    return stream


def _with(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)
