"""The bytes of a file, plain or compressed, as its name's ending says: .gz, .xz or .zst."""

from __future__ import annotations

import lzma
from pathlib import Path

import pyarrow as pa

from pretrain.errors import ProbeError

COMPRESSED = (".gz", ".xz", ".zst")
_ARROW = {".gz": "gzip", ".zst": "zstd"}


def plain_name(name: str) -> str:
    """The lower-case name of a file without the ending of a compression."""
    name = name.lower()
    return name[: name.rindex(".")] if name.endswith(COMPRESSED) else name


def content_of(path: Path) -> bytes:
    """What a file holds, decompressed.

    Raises:
        ProbeError: it cannot be read, or is not compressed as its name says.
    """
    ending = path.suffix.lower()
    try:
        content = path.read_bytes()
        if ending == ".xz":
            return lzma.decompress(content)
        if ending in _ARROW:
            stream = pa.CompressedInputStream(pa.BufferReader(content), _ARROW[ending])
            whole: bytes = stream.read()
            return whole
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowInvalid) as error:
        raise ProbeError(f"{path} cannot be read{_as(ending)}: {error}. Is it whole?") from error
    return content


def _as(ending: str) -> str:
    return f" as {ending}" if ending in COMPRESSED else ""
