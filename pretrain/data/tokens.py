"""Token shards laid end to end as one stream, read by window; `.bin/.idx` pairs in Megatron-core's format.

Any number of shards: one that nobody reads is never opened. Reads many windows of many streams together, which is what
a batch wants. Where the bytes come from is `local_shard.py`'s and `remote_shard.py`'s business, what an index says
`shard_index.py`'s; writing is not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.files import is_remote
from pretrain.data.local_shard import LocalFile
from pretrain.data.remote_shard import INDEXES, RemoteFile, pool, read_ranges
from pretrain.data.shard_index import IndexHeader, ShardIndex, read_header
from pretrain.errors import DataError


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard as a manifest knows it, so that nothing needs to be opened to know the stream's size.

    Attributes:
        prefix: local path or fsspec address, without `.bin`/`.idx`.
        dtype: of a token, as numpy names it.
        documents: documents it holds.
        tokens: tokens it holds.
    """

    prefix: str
    dtype: str
    documents: int
    tokens: int


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


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """Where a token is stored.

    Attributes:
        path: path or address of the `.bin` file.
        offset: of its first byte.
    """

    path: str
    offset: int


_Piece = tuple[int, int, int, int]
"""Row and column of the output, first token in the shard, number of tokens."""


class _Shard:
    """One `.bin/.idx` pair."""

    __slots__ = ("_header", "_known", "bin", "idx", "prefix")

    def __init__(self, shard: ShardFile | str | Path) -> None:
        self._known = shard if isinstance(shard, ShardFile) else None
        self.prefix = shard.prefix if isinstance(shard, ShardFile) else str(shard)
        self._header: IndexHeader | None = None
        self.bin: LocalFile | RemoteFile | None = None
        self.idx: LocalFile | RemoteFile | None = None

    @property
    def is_open(self) -> bool:
        return self._header is not None

    @property
    def num_tokens(self) -> int:
        return self._known.tokens if self._known else self.open().num_tokens

    @property
    def num_documents(self) -> int:
        return self._known.documents if self._known else self.open().num_documents

    def open(self) -> IndexHeader:
        """Checks header and sizes at the first use; from then on says what it found."""
        if self._header is not None:
            return self._header
        kind = RemoteFile if is_remote(self.prefix) else LocalFile
        idx, bin_file = kind(f"{self.prefix}.idx"), kind(f"{self.prefix}.bin")
        header, found = read_header(idx), bin_file.size()
        if found != header.num_bytes:
            raise DataError(
                f"{bin_file.path} is torn: it ends at byte {found}, its index needs {header.num_bytes}. Copy it again, "
                "or prepare the text anew into another folder (data.prepared_dir)."
            )
        known = self._known
        if known and (header.dtype, header.num_documents, header.num_tokens) != (
            np.dtype(known.dtype), known.documents, known.tokens,
        ):  # fmt: skip
            raise DataError(
                f"{idx.path} holds {header.num_documents} documents of {header.num_tokens} tokens ({header.dtype}); "
                f"the manifest has {known.documents} of {known.tokens} ({known.dtype}): the file belongs to another "
                "preparation. Copy the folder again, or prepare the text anew into another one (data.prepared_dir)."
            )
        self.idx, self.bin, self._header = idx, bin_file, header
        return header

    def index(self) -> ShardIndex:
        header = self.open()
        assert self.idx is not None, "an open shard has its files"
        return ShardIndex(INDEXES.get(self.idx) if isinstance(self.idx, RemoteFile) else self.idx, header)

    def read_local(self, pieces: Sequence[_Piece], out_NT: np.ndarray) -> None:
        """Fills parts of rows by one read each: of int32 in place, of other types by way of one buffer."""
        header = self.open()
        assert isinstance(self.bin, LocalFile)
        itemsize = header.dtype.itemsize
        if header.dtype == out_NT.dtype:
            whole = out_NT.data.cast("B")
            width = out_NT.shape[1]
            places = [(row * width + column) * itemsize for row, column, _, _ in pieces]
        else:
            ends = np.cumsum([count for *_, count in pieces])
            buffer = np.empty(int(ends[-1]), dtype=header.dtype)
            whole = buffer.data.cast("B")
            places = [(int(end) - piece[3]) * itemsize for end, piece in zip(ends, pieces, strict=True)]
        self.bin.read_into(
            [
                (first * itemsize, whole[place : place + count * itemsize])
                for place, (_, _, first, count) in zip(places, pieces, strict=True)
            ]
        )
        if header.dtype != out_NT.dtype:
            _spread(buffer, pieces, out_NT)


def _spread(buffer: np.ndarray, pieces: Sequence[_Piece], out_NT: np.ndarray) -> None:
    done = 0
    for row, column, _, count in pieces:
        out_NT[row, column : column + count] = buffer[done : done + count]
        done += count


class TokenStream:
    """Shards laid end to end; safe to share by threads.

    Attributes:
        num_tokens: tokens of all shards.
        num_documents: documents of all shards.
    """

    def __init__(self, shards: Sequence[ShardFile | str | Path]) -> None:
        """Opens no `ShardFile` until it is used; of a path, header and sizes are read now.

        Args:
            shards: in stream order; paths and addresses are without `.bin`/`.idx`. None is an empty stream.

        Raises:
            DataError: a file is missing, is not Megatron's format, is torn, or (when first used) is not the shard that
                the manifest describes.
        """
        self._shards = [_Shard(shard) for shard in shards]
        self._starts = np.cumsum([0, *(shard.num_tokens for shard in self._shards)])
        self.num_tokens = int(self._starts[-1])
        self.num_documents = sum(shard.num_documents for shard in self._shards)

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as a new int32 array.

        Raises:
            IndexError: the window is not within the stream.
            DataError: as `read_windows`.
        """
        out = np.empty((1, max(length, 0)), dtype=np.int32)
        self._check(start, start + length)
        read_windows([self], np.zeros(1, dtype=np.int64), np.array([start], dtype=np.int64), out)
        return out[0]

    def place(self, position: int) -> TokenPlace:
        """Where the token at a stream position is stored.

        Raises:
            IndexError: the position is not within the stream.
        """
        shard, begin = self._shard_at(position)
        return TokenPlace(f"{shard.prefix}.bin", (position - begin) * shard.open().dtype.itemsize)

    def document(self, position: int) -> DocumentSpan:
        """The document that holds the token at a stream position.

        Raises:
            IndexError: the position is not within the stream.
            DataError: the index cannot be read or changed.
        """
        shard, begin = self._shard_at(position)
        index, start, stop = shard.index().document(position - begin)
        return DocumentSpan(Path(shard.prefix), index, begin + start, begin + stop)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) at which a document begins, int64, ascending.

        Raises:
            DataError: the index cannot be read or changed.
        """
        found = [np.empty(0, dtype=np.int64)]
        for shard, begin in self._shards_in(start, stop):
            low, high = max(start - begin, 0), min(stop - begin, shard.num_tokens)
            found.append(shard.index().starts(low, high) + begin)
        return np.concatenate(found)

    def pieces(self, rows: Sequence[int], starts: np.ndarray, length: int) -> dict[_Shard, list[_Piece]]:
        """What windows of one length need of which shard.

        Args:
            rows: index of each window's row in the output.
            starts: int64, stream position of each window's first token.
            length: tokens of each.

        Raises:
            IndexError: a window is not within the stream.
        """
        found: dict[_Shard, list[_Piece]] = {}
        if not len(starts):
            return found
        self._check(int(starts.min()), int(starts.max()) + length)
        if not length:
            return found
        begins, ends = self._starts[:-1], self._starts[1:]
        numbers = np.searchsorted(begins, starts, side="right") - 1
        inside = (starts - begins[numbers]).tolist()
        is_whole = (starts + length <= ends[numbers]).tolist()
        for row, number, first, whole, start in zip(
            rows, numbers.tolist(), inside, is_whole, starts.tolist(), strict=True
        ):
            if whole:
                found.setdefault(self._shards[number], []).append((row, 0, first, length))
                continue
            for shard, begin in self._shards_in(start, start + length):
                low, high = max(start, begin), min(start + length, begin + shard.num_tokens)
                found.setdefault(shard, []).append((row, low - start, low - begin, high - low))
        return found

    def _shards_in(self, start: int, stop: int) -> list[tuple[_Shard, int]]:
        """Shards that hold any of [start, stop), and where each begins."""
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        last = int(np.searchsorted(self._starts[:-1], stop, side="left"))
        begins = self._starts[first:last].tolist()
        return [(s, b) for s, b in zip(self._shards[first:last], begins, strict=True) if s.num_tokens]

    def _shard_at(self, position: int) -> tuple[_Shard, int]:
        if not 0 <= position < self.num_tokens:
            raise IndexError(f"position {position} is outside a stream of {self.num_tokens} tokens")
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._shards[number], int(self._starts[number])

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"window [{start}, {stop}) is outside a stream of {self.num_tokens} tokens")


def read_windows(streams: Sequence[TokenStream], source_N: np.ndarray, start_N: np.ndarray, out_NT: np.ndarray) -> None:
    """Fills rows with windows of several streams: one read each where they are local, all at once where they are not.

    Args:
        streams: the streams.
        source_N: int64, index of each row's stream.
        start_N: int64, stream position of each row's first token.
        out_NT: int32, contiguous; filled with the tokens.

    Raises:
        IndexError: a window is not within its stream.
        DataError: a file is missing, torn, short or changed during the run; named with the byte offset.
    """
    length = out_NT.shape[1]
    wanted: dict[_Shard, list[_Piece]] = {}
    for index, stream in enumerate(streams):
        rows = np.flatnonzero(source_N == index)
        wanted |= stream.pieces(rows.tolist(), start_N[rows], length)
    remote = {shard: pieces for shard, pieces in wanted.items() if is_remote(shard.prefix)}
    for shard, pieces in wanted.items():
        if shard not in remote:
            shard.read_local(pieces, out_NT)
    if remote:
        _read_remote(remote, out_NT)


def _read_remote(wanted: dict[_Shard, list[_Piece]], out_NT: np.ndarray) -> None:
    list(pool().map(_Shard.open, [shard for shard in wanted if not shard.is_open]))
    ranges: list[tuple[RemoteFile, int, int]] = []
    targets: list[tuple[np.dtype, _Piece]] = []
    for shard, pieces in wanted.items():
        dtype = shard.open().dtype
        assert isinstance(shard.bin, RemoteFile)
        for piece in pieces:
            _, _, first, count = piece
            ranges.append((shard.bin, first * dtype.itemsize, count * dtype.itemsize))
            targets.append((dtype, piece))
    for (dtype, piece), content in zip(targets, read_ranges(ranges), strict=True):
        _spread(np.frombuffer(content, dtype=dtype), [piece], out_NT)


def read_ends(streams: Sequence[TokenStream], source_N: np.ndarray, start_N: np.ndarray, out_NS: np.ndarray) -> None:
    """Fills rows with where each token's document ends within its window.

    Args:
        streams: the streams.
        source_N: int64, index of each row's stream.
        start_N: int64, stream position of each row's first token.
        out_NS: int32; filled with the index in the window, at most S, one past the last token of the same document.

    Raises:
        DataError: an index cannot be read or changed.
    """
    length = out_NS.shape[1]
    remote: dict[_Shard, None] = {}
    for index, stream in enumerate(streams):
        rows = np.flatnonzero(source_N == index)
        remote |= {s: None for s in stream.pieces(rows.tolist(), start_N[rows], length) if is_remote(s.prefix)}
    if remote:
        list(pool().map(_Shard.index, remote))  # their indexes, fetched at once
    for row, source, start in zip(out_NS, source_N.tolist(), start_N.tolist(), strict=True):
        bounds = np.append(streams[source].document_starts(start + 1, start + length) - start, length)
        row[:] = np.repeat(bounds, np.diff(bounds, prepend=0))
