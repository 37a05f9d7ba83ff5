"""Lines of a file, unpacked, in bounded memory: a line that is too long is passed over without being held.

Bytes only; what a line means is `documents.py`'s business. A stream that breaks off is never taken for one that ends.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from pretrain.data.files import InputFile, open_file, packing_of
from pretrain.data.kinds import HEAD_BYTES, wrong_content, wrong_packing

BYTE_ORDER_MARK = codecs.BOM_UTF8
"""What some editors write at the start of a file in UTF-8. It is no text."""
_CHUNK_BYTES = 1 << 20
# Smaller where the next one may not unpack: all of it is lost then.
_UNPACKED_CHUNK_BYTES = 1 << 17
# The largest window that Arrow's reader accepts; files packed with `zstd --long=28` and more have a larger one.
_ARROW_WINDOW_BYTES = 1 << 27
_LONGEST_FRAME_HEADER = 18
_LARGE_WINDOW_FEED_BYTES = 1 << 12


class Broken(Exception):
    """A file that cannot be read any further.

    Attributes:
        reason: `damaged`, `vanished` or `wrong_kind`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Line(NamedTuple):
    """One line, without its newline.

    Attributes:
        number: from 1, counted from where reading began.
        byte: where it begins in the unpacked file.
        data: its bytes; None of a line that is too long.
        size: its length in bytes.
    """

    number: int
    byte: int
    data: bytes | None
    size: int


def read_lines(file: InputFile, *, start: int = 0, stop: int | None = None, max_line_bytes: int) -> Iterator[Line]:
    """Lines of a file that begin in [start, stop), each to its end; a byte order mark at its start is passed over.

    Args:
        file: plain, `.gz` or `.zst`.
        start: first byte. Where lines cannot be sought (`file.is_seekable_lines`) it is 0, and `stop` does not count.
        stop: end of the range; None is the end of the file.
        max_line_bytes: longer lines are yielded without their bytes.

    Raises:
        Broken: damaged, torn, gone, shorter than when it was found, or not text in UTF-8 that is packed as its ending
            says.
    """
    assert start == 0 or file.is_seekable_lines, f"{file.path} is read whole, not from byte {start}"
    stop = stop if file.is_seekable_lines else None
    number = 0
    # One byte earlier: a newline there says that a line begins at `start`.
    position = max(0, start - 1)
    is_first_foreign = start > 0
    for data, size in _split(read_chunks(file, start=position), max_line_bytes=max_line_bytes):
        if is_first_foreign:
            is_first_foreign = False
        else:
            if stop is not None and position >= stop:
                return
            number += 1
            if position == 0 and data is not None:
                data = data.removeprefix(BYTE_ORDER_MARK)
            yield Line(number, position, data, size)
        position += size + 1


def read_chunks(file: InputFile, *, start: int = 0) -> Iterator[bytes]:
    """Unpacked bytes of a file, from an offset of plain ones, at most a megabyte at a time however well it is packed.

    Raises:
        Broken: as `read_lines`.
    """
    path = file.path
    with contextlib.ExitStack() as opened:
        try:
            stream = opened.enter_context(open_file(path))
            head = stream.read(HEAD_BYTES)
            if problem := wrong_packing(head, path):
                raise Broken("wrong_kind", problem)
            stream.seek(0)
            packing = packing_of(path)
            if packing == ".gz":
                yield from _looked_at(_unpacked(gzip.GzipFile(fileobj=stream), file), path)
            elif packing == ".zst":
                yield from _looked_at(_zstd_chunks(stream, file), path)
            else:
                yield from _plain_chunks(stream, file, start=start)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise Broken("damaged", f"damaged: {error}. Copy or write it again.") from None
        except OSError as error:
            raise Broken("vanished", f"cannot be read: {error.strerror or error}.") from None


def _looked_at(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """The same chunks, if the first of them may be text."""
    for first in chunks:
        if problem := wrong_content(first[:HEAD_BYTES], path):
            raise Broken("wrong_kind", problem)
        yield first
        break
    yield from chunks


def _plain_chunks(stream: IO[bytes], file: InputFile, *, start: int) -> Iterator[bytes]:
    stream.seek(start)
    position = start
    while chunk := stream.read(_CHUNK_BYTES):
        position += len(chunk)
        yield chunk
    if position < file.size:
        raise Broken(
            "damaged", f"ends at byte {position:,}, and had {file.size:,} when it was found. Copy or write it again."
        )


def _unpacked(stream: Any, file: InputFile) -> Iterator[bytes]:
    if file.size == 0:
        raise EOFError("it has no bytes, not even a header")
    while chunk := stream.read(_UNPACKED_CHUNK_BYTES):
        yield chunk


def _zstd_chunks(stream: IO[bytes], file: InputFile) -> Iterator[bytes]:
    """Unpacks with Arrow's reader: zstandard's takes the end of a torn file for the end of the text."""
    import pyarrow
    import zstandard

    try:
        window_bytes = zstandard.get_frame_parameters(stream.read(_LONGEST_FRAME_HEADER)).window_size
    except zstandard.ZstdError:
        window_bytes = 0  # no header at all: Arrow says what is wrong
    stream.seek(0)
    if window_bytes > _ARROW_WINDOW_BYTES:
        yield from _zstd_frames(stream)
        return
    reader = _unpacked(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd"), file)
    while True:
        try:
            chunk = next(reader)
        except StopIteration:
            return
        except OSError as error:
            if error.errno is not None:
                raise
            raise EOFError(str(error)) from None  # Arrow's own, of the packed bytes
        yield chunk


def _zstd_frames(stream: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame, with windows of up to 2 GiB, fed little by little: what one feed unpacks to has no bound."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    try:
        while packed := stream.read(_LARGE_WINDOW_FEED_BYTES):
            while packed:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(packed)
                packed = b""
                if frame.eof:
                    packed, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if frame is not None:
        raise EOFError("the compressed stream ends before its end marker")


def _split(chunks: Iterator[bytes], *, max_line_bytes: int) -> Iterator[tuple[bytes | None, int]]:
    """Lines with their sizes; those that are too long without their bytes. The last one may lack its newline."""
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        size += len(first)
        if size > max_line_bytes:
            rest = []
        else:
            rest.append(first)
        if not others:
            continue
        yield (b"".join(rest) if size <= max_line_bytes else None), size
        last = others.pop()
        for line in others:
            yield (line if len(line) <= max_line_bytes else None), len(line)
        rest, size = [last], len(last)
    if size:
        yield (b"".join(rest) if size <= max_line_bytes else None), size
