"""The index of a token shard (`.idx`, Megatron-core's format): its header, and where its documents begin.

Reads the format itself, because importing Megatron to open a file takes seconds and its own reader notices a torn
file only when it is too late. Nothing is mapped and nothing held: documents are found by binary search with a few
small reads, so that memory does not grow with their number and a file cut short is an error, not a dead process.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.errors import DataError

# Layout: megatron/core/datasets/indexed_dataset.py, _IndexWriter.
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, np.dtype] = {4: np.dtype(np.int32), 5: np.dtype(np.int64), 8: np.dtype(np.uint16)}
_ENTRIES_AT_ONCE = 1024
"""A search reads so many 8-byte entries together, two pages: around a good guess it then needs one read."""


class ShardBytes(Protocol):
    """One file of a shard, local or not.

    Attributes:
        path: its path or address, for errors.
    """

    path: str

    def size(self) -> int:
        """Bytes in the file now.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from an offset on.

        Raises:
            DataError: it cannot be read, ends before, or is not the file it was.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What an index says of its shard.

    Attributes:
        dtype: of a token.
        num_sequences: pieces that documents are made of; usually one each.
        num_documents: documents.
        num_tokens: tokens.
    """

    dtype: np.dtype
    num_sequences: int
    num_documents: int
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Size of the `.bin` file."""
        return self.num_tokens * self.dtype.itemsize


def read_header(file: ShardBytes) -> IndexHeader:
    """The header of an index, after checking it against the file's size.

    Raises:
        DataError: the file is missing, is not Megatron's format, or is torn.
    """
    size = file.size()
    header = file.read(0, min(size, _HEADER.size))
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DataError(
            f"{file.path} is not an index of Megatron's format: offset 0 of {size} bytes does not hold its "
            f"{_HEADER.size} byte header. Copy the folder again, or prepare the text anew into another one "
            "(data.prepared_dir)."
        )
    _, version, code, num_sequences, num_boundaries = _HEADER.unpack(header)
    if version != 1 or code not in _DTYPES:
        raise DataError(
            f"{file.path}, offset 9: version {version} with token type {code} is not supported; version 1 with types "
            f"{', '.join(f'{key} ({value})' for key, value in _DTYPES.items())} is."
        )
    needed = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if size != needed:
        raise DataError(
            f"{file.path} is torn: it ends at byte {size}, its header needs {needed} ({num_sequences} sequences, "
            f"{num_boundaries} document boundaries). Copy it again, or prepare the text anew into another folder "
            "(data.prepared_dir)."
        )
    dtype, num_bytes = _DTYPES[code], 0
    if num_sequences:
        (length,) = struct.unpack("<i", file.read(_HEADER.size + 4 * (num_sequences - 1), 4))
        (pointer,) = struct.unpack("<q", file.read(_HEADER.size + 12 * num_sequences - 8, 8))
        num_bytes = pointer + length * dtype.itemsize
    return IndexHeader(dtype, num_sequences, max(0, num_boundaries - 1), num_bytes // dtype.itemsize)


class ShardIndex:
    """Documents of one shard.

    Args:
        file: the index file.
        header: its header.
    """

    def __init__(self, file: ShardBytes, header: IndexHeader) -> None:
        self._file, self._header = file, header
        self._pointers = _HEADER.size + 4 * header.num_sequences  # offset of the sequences' byte positions
        self._documents = self._pointers + 8 * header.num_sequences  # offset of the documents' first sequences

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Tokens in [start, stop) of the shard at which a document begins; int64, ascending."""
        itemsize, header = self._header.dtype.itemsize, self._header
        first = self._sequence_from(start * itemsize)
        last = self._search(self._pointers, header.num_sequences, stop * itemsize, guess=first)
        if first == last:
            return np.empty(0, dtype=np.int64)
        low = self._search(self._documents, header.num_documents, first, guess=first)
        high = self._search(self._documents, header.num_documents, last, guess=low)
        sequences = self._entries(self._documents, low, high)
        pointers = self._entries(self._pointers, first, last)
        return pointers[sequences - first] // itemsize

    def document(self, position: int) -> tuple[int, int, int]:
        """Number, start and stop (in tokens of the shard) of the document that holds a token."""
        header = self._header
        sequence = self._sequence_from(position * header.dtype.itemsize + 1) - 1
        number = self._search(self._documents, header.num_documents + 1, sequence + 1, guess=sequence + 1) - 1
        start, stop = self._entries(self._documents, number, number + 2).tolist()
        return number, self._token(start), self._token(stop)

    def _token(self, sequence: int) -> int:
        if sequence >= self._header.num_sequences:
            return self._header.num_tokens
        return int(self._entries(self._pointers, sequence, sequence + 1)[0]) // self._header.dtype.itemsize

    def _sequence_from(self, byte: int) -> int:
        """The first sequence that does not begin before a byte; they are of about one length."""
        count = self._header.num_sequences
        return self._search(self._pointers, count, byte, guess=byte * count // max(1, self._header.num_bytes))

    def _search(self, offset: int, count: int, value: int, *, guess: int) -> int:
        """Index of the first of `count` ascending entries from a file offset on that is not below a value.

        Looks around a guess, then halves what is left.
        """
        low, high = 0, count
        while low < high:
            first = max(low, min(guess - _ENTRIES_AT_ONCE // 2, high - _ENTRIES_AT_ONCE))
            entries = self._entries(offset, first, min(high, first + _ENTRIES_AT_ONCE))
            found = int(np.searchsorted(entries, value))
            if found == 0:
                high = first
            elif found == len(entries):
                low = first + found
            else:
                return first + found
            guess = (low + high) // 2
        return low

    def _entries(self, offset: int, first: int, last: int) -> np.ndarray:
        return np.frombuffer(self._file.read(offset + 8 * first, 8 * (last - first)), dtype="<i8")
