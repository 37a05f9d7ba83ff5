"""Token shards on disk as one stream: memory-mapped `.bin/.idx` pairs in Megatron-core's format.

Reads the index header itself, because importing Megatron to open a file takes seconds and its own reader
notices a torn file only when it is too late. Writing is `shards.py`'s business.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.errors import DataError

# Layout: megatron/core/datasets/indexed_dataset.py, _IndexWriter.
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, np.dtype] = {4: np.dtype(np.int32), 5: np.dtype(np.int64), 8: np.dtype(np.uint16)}


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """A document in a stream.

    Attributes:
        shard: path of its shard, without ending.
        index: its number within the shard, from 0.
        start: stream position of its first token.
        stop: stream position after its last token.
    """

    shard: Path
    index: int
    start: int
    stop: int


class _Shard:
    """One `.bin/.idx` pair, mapped."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        idx_path, bin_path = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
        dtype, num_sequences, num_documents = _read_header(idx_path)
        index = np.memmap(idx_path, mode="r", dtype=np.uint8)
        offset = _HEADER.size
        self.lengths = index[offset : offset + 4 * num_sequences].view(np.int32)
        offset += 4 * num_sequences
        self.pointers = index[offset : offset + 8 * num_sequences].view(np.int64)
        offset += 8 * num_sequences
        self.documents = index[offset : offset + 8 * num_documents].view(np.int64)
        self.itemsize = dtype.itemsize
        num_bytes = int(self.pointers[-1]) + int(self.lengths[-1]) * self.itemsize if num_sequences else 0
        found = _size(bin_path)
        if found != num_bytes:
            raise DataError(
                f"{bin_path} is torn: it ends at byte {found}, its index needs {num_bytes}. Copy it again, or delete "
                f"the folder {bin_path.parent} to have it prepared anew."
            )
        self.num_tokens = num_bytes // self.itemsize
        empty = np.empty(0, dtype=dtype)
        self.tokens: np.ndarray = np.memmap(bin_path, mode="r", dtype=dtype) if num_bytes else empty

    def document(self, position: int) -> tuple[int, int, int]:
        """Number, start and stop (in tokens of the shard) of the document that holds a position."""
        sequence = int(np.searchsorted(self.pointers, position * self.itemsize, side="right")) - 1
        number = int(np.searchsorted(self.documents, sequence, side="right")) - 1
        return number, self._start(number), self._start(number + 1)

    def _start(self, number: int) -> int:
        sequence = int(self.documents[number])
        return int(self.pointers[sequence]) // self.itemsize if sequence < len(self.pointers) else self.num_tokens


class TokenStream:
    """Shards laid end to end. Cheap to open (headers and sizes are checked, tokens not read), safe to share.

    Attributes:
        num_tokens: tokens of all shards.
        num_documents: documents of all shards.
    """

    def __init__(self, prefixes: Sequence[str | Path]) -> None:
        """Maps the shards.

        Args:
            prefixes: paths without `.bin`/`.idx`, in stream order; none is an empty stream.

        Raises:
            DataError: a file is missing, is not Megatron's format, or is torn.
        """
        self._shards = [_Shard(Path(prefix)) for prefix in prefixes]
        self._starts = np.cumsum([0, *(shard.num_tokens for shard in self._shards)])
        self.num_tokens = int(self._starts[-1])
        self.num_documents = sum(max(0, len(shard.documents) - 1) for shard in self._shards)

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as a new int32 array.

        Raises:
            IndexError: the window is not within the stream.
        """
        stop = start + length
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"window [{start}, {stop}) is outside a stream of {self.num_tokens} tokens")
        out = np.empty(length, dtype=np.int32)
        first = self._shard_of(start) if length else len(self._shards)
        for shard, begin in zip(self._shards[first:], self._starts[first:], strict=False):
            if begin >= stop:
                break
            low, high = max(start, int(begin)), min(stop, int(begin) + shard.num_tokens)
            out[low - start : high - start] = shard.tokens[low - begin : high - begin]
        return out

    def document(self, position: int) -> DocumentSpan:
        """The document that holds the token at a stream position.

        Raises:
            IndexError: the position is not within the stream.
        """
        if not 0 <= position < self.num_tokens:
            raise IndexError(f"position {position} is outside a stream of {self.num_tokens} tokens")
        number = self._shard_of(position)
        shard, begin = self._shards[number], int(self._starts[number])
        index, start, stop = shard.document(position - begin)
        return DocumentSpan(shard.prefix, index, begin + start, begin + stop)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) at which a document begins, int64, ascending."""
        found = [np.empty(0, dtype=np.int64)]
        for shard, begin in zip(self._shards, self._starts, strict=False):
            if begin < stop and begin + shard.num_tokens > start:
                starts = shard.pointers[shard.documents[:-1]] // shard.itemsize + begin
                found.append(starts[(starts >= start) & (starts < stop)])
        return np.concatenate(found)

    def _shard_of(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    """Token type, number of sequences and of document boundaries, after checking the file's size."""
    size = _size(path)
    with path.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DataError(
            f"{path} is not an index of Megatron's format: offset 0 of {size} bytes does not hold its {_HEADER.size} "
            "byte header. Delete the folder to have it prepared anew."
        )
    _, version, code, num_sequences, num_documents = _HEADER.unpack(header)
    if version != 1 or code not in _DTYPES:
        raise DataError(
            f"{path}, offset 9: version {version} with token type {code} is not supported; version 1 with types "
            f"{', '.join(f'{key} ({value})' for key, value in _DTYPES.items())} is."
        )
    needed = _HEADER.size + 12 * num_sequences + 8 * num_documents
    if size < needed:
        raise DataError(
            f"{path} is torn: it ends at byte {size}, its header needs {needed} ({num_sequences} sequences, "
            f"{num_documents} document boundaries). Copy it again or have it prepared anew."
        )
    return _DTYPES[code], num_sequences, num_documents


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); the prepared data is incomplete.") from None
