"""What a file is by its first bytes, where that is not what its name says: how it is packed, how its text is encoded.

Only what would go wrong is looked for, and each answer says what the file is and what to do. Text in UTF-8 that is
packed as its ending says has no answer, whether or not it is JSON: that is `documents.py`'s business.
"""

from __future__ import annotations

import shlex

from pretrain.data.files import is_remote, packing_of

HEAD_BYTES = 512
"""So many first bytes are enough to tell."""
_GZIP, _ZSTD = "gzip", "Zstandard"
_PACKED_AS = {".gz": _GZIP, ".zst": _ZSTD}
_UNPACK = {".gz": "gzip -dc", ".zst": "zstd -dc"}
_ENDINGS = {_GZIP: ".gz", _ZSTD: ".zst", "Parquet": ".parquet", "Arrow": ".arrow"}
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b\x08", _GZIP),
    (b"\x28\xb5\x2f\xfd", _ZSTD),
    *((bytes([0x50 + number]) + b"\x2a\x4d\x18", _ZSTD) for number in range(16)),  # a frame to be skipped
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"PAR1\x15", "Parquet"),
    (b"ARROW1\0\0", "Arrow"),
)
_BZIP2_BLOCK = b"1AY&SY"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_ANSWER = "it is a pointer of Git LFS, not the file it stands for. Get that: git lfs pull."
# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Which of the first four bytes are 0 where text without a mark begins with ASCII (RFC 4627, section 3).
_ZEROS = {
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}


def wrong_packing(head: bytes, path: str) -> str | None:
    """Why a file is not packed as its ending says, with the remedy; None where it is.

    Args:
        head: its first bytes as stored, `HEAD_BYTES` or all.
        path: its path or address.
    """
    packing = packing_of(path)
    if not packing:
        return wrong_content(head, path)
    wanted = _PACKED_AS[packing]
    kind = _kind(head)
    if kind == wanted or any(magic.startswith(head) for magic, name in _MAGIC if name == wanted):  # or torn
        return None
    if kind in _ENDINGS:
        return f"it is {kind}, although its name ends in {packing}. Rename it to end in {_ENDINGS[kind]} instead."
    if kind is not None:
        return f"it is {kind}, although its name ends in {packing}. Pack its content as {packing} and list that."
    return (
        f"it does not begin as {wanted} does, although its name ends in {packing}. Rename it without that ending if it "
        "is not packed, else copy or write it again."
    )


def wrong_content(head: bytes, path: str) -> str | None:
    """Why what a file holds, once unpacked, is not text in UTF-8, with the remedy; None where that cannot be said yet.

    Args:
        head: its first bytes when unpacked, `HEAD_BYTES` or all.
        path: its path or address.
    """
    packing = packing_of(path)
    source = path.rstrip("/").rsplit("/", 1)[-1] if is_remote(path) else path
    name = source.rsplit("/", 1)[-1]
    if head.startswith(_LFS_POINTER):
        return _LFS_ANSWER
    if encoding := _encoding(head):
        begin = f"{_UNPACK[packing]} {shlex.quote(source)} | " if packing else ""
        end = "" if packing else f" {shlex.quote(source)}"
        new = shlex.quote(f"utf8-{name[: len(name) - len(packing)]}")
        return (
            f"it is text in {encoding}, not in UTF-8. Convert it and list the new file: {begin}iconv -f {encoding} -t "
            f"UTF-8{end} > {new}."
        )
    kind = _kind(head)
    if kind is None:
        return None
    if packing:
        what = f"it is {kind} inside {_PACKED_AS[packing]}"
        new = shlex.quote(f"unpacked-{name[: len(name) - len(packing)]}{_ENDINGS.get(kind, '')}")
        if kind in _ENDINGS:
            return f"{what}. Unpack it once and list the new file: {_UNPACK[packing]} {shlex.quote(source)} > {new}."
        return f"{what}. Unpack it and list the text files that are in it."
    if kind in (_GZIP, _ZSTD):
        return f"it is {kind}, which its name does not say. Rename it to {name}{_ENDINGS[kind]}."
    if kind in _ENDINGS:
        return f"it is {kind}, which its name does not say. Rename it to end in {_ENDINGS[kind]}."
    return f"it is {kind}, which is not read here. Unpack it and list the text files that are in it."


def wrong_table(head: bytes) -> str | None:
    """What a file is that is named like a table and is none, with the remedy; None where that cannot be said.

    Args:
        head: its first bytes, `HEAD_BYTES` or all.
    """
    if head.startswith(_LFS_POINTER):
        return _LFS_ANSWER
    kind = _kind(head)
    if kind in ("Parquet", "Arrow"):
        return f"it is {kind}. Rename it to end in {_ENDINGS[kind]}."
    if kind is not None:
        return f"it is {kind}. Unpack it and list the files that are in it."
    return "it is JSON. Rename it to end in .jsonl." if head.lstrip()[:1] in (b"{", b"[") else None


def _kind(head: bytes) -> str | None:
    for magic, name in _MAGIC:
        if head.startswith(magic) and (name != "bzip2" or head[4:10] == _BZIP2_BLOCK):
            return name
    return "tar" if head[257:262] == b"ustar" and b"\0" in head[:257] else None


def _encoding(head: bytes) -> str | None:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    return _ZEROS.get(tuple(byte == 0 for byte in head[:4]))  # type: ignore[arg-type]
