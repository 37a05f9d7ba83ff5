"""Which files a source is made of: paths, globs, `bundled:NAME` and fsspec addresses, found and measured.

The ending says the format. What is in the files is `documents.py`'s business.

Formats: `.jsonl` (also `.json`, `.ndjson`; a document a line), `.txt` (a document a file), both also as `.gz` and
`.zst`; `.parquet`; `.arrow`. A folder is one that `datasets` saved, or a snapshot of a hub data set; see `folders.py`.

datatrove's `DataFolder` lists below one root and drops sizes; a source is a list of patterns over any roots, so fsspec,
which `DataFolder` itself stands on, is asked directly.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pretrain.errors import DataError

BUNDLED_PREFIX = "bundled:"
BUNDLED_DIR = Path(__file__).parent / "corpus"
BUNDLED_SUFFIX = ".jsonl.zst"
TOKEN_IDS = "token_ids"

_FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_PACKED = (".gz", ".zst")
_PACKED_FORMATS = ("jsonl", "text")
_CHUNK_BYTES = 1 << 22
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "msc": "multi-storage-client",
    "oss": "ossfs",
    "ssh": "paramiko",
    "sftp": "paramiko",
    "http": "aiohttp",
    "https": "aiohttp",
}


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a source.

    Attributes:
        path: local path or fsspec address.
        format: `jsonl`, `text`, `parquet`, `arrow` or `token_ids`.
        size: bytes as stored.
        rows: rows of a table; None for files of lines, and for a table whose index cannot be read (reading it says
            why).
        is_seekable_lines: a byte range can be read by itself: lines that are not compressed.
    """

    path: str
    format: str
    size: int
    rows: int | None
    is_seekable_lines: bool

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def find_files(patterns: Sequence[str], *, key: str, token_ids: bool = False) -> list[InputFile]:
    """Files that patterns stand for, in order, each once; the matches of a glob are sorted.

    Args:
        patterns: as written in the configuration.
        key: the configuration key, for errors.
        token_ids: the files hold lines with `token_ids`, not text.

    Raises:
        DataError: nothing is listed, a file is missing or of no known format, a glob matches nothing, no text of that
            name is shipped, or a package that reads such addresses is missing.
    """
    from pretrain.data.tables import count_rows

    if not patterns:
        raise DataError(f"{key} is empty. List JSONL files, globs or {BUNDLED_PREFIX}NAME, or remove the source.")
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        for path, size in _resolve(pattern, key=key):
            form = format_of(path, key=key)
            if token_ids:
                if form != "jsonl":
                    raise DataError(f"{key} lists {path}; lines with `token_ids` are read from .jsonl files only.")
                form = TOKEN_IDS
            rows = count_rows(path, form) if form in ("parquet", "arrow") else None
            is_seekable = form in ("jsonl", TOKEN_IDS) and not path.endswith(_PACKED)
            found.setdefault(path, InputFile(path, form, size, rows, is_seekable))
    return list(found.values())


def format_of(path: str, *, key: str) -> str:
    """Format of a file, by its ending.

    Raises:
        DataError: an unknown ending.
    """
    name = path.rsplit("/", 1)[-1].lower()
    inner = next((name.removesuffix(packed) for packed in _PACKED if name.endswith(packed)), name)
    form = _FORMATS.get(os.path.splitext(inner)[1])
    if form is None or (inner != name and form not in _PACKED_FORMATS):
        known = [*_FORMATS, *(f"{e}{p}" for e, f in _FORMATS.items() if f in _PACKED_FORMATS for p in _PACKED)]
        raise DataError(
            f"{key} lists {path}, whose ending says no known format. Known: {', '.join(sorted(known))}. Rename or "
            "convert the file, or correct the pattern."
        )
    return form


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec address."""
    return "://" in path


def open_file(path: str) -> IO[bytes]:
    """Opens a local file or an fsspec address for reading.

    Raises:
        OSError: it cannot be opened.
        DataError: a package that reads such addresses is missing.
    """
    if not is_remote(path):
        return open(path, "rb")
    fs, inner = file_system(path, key="data")
    stream: IO[bytes] = fs.open(inner, "rb")
    return stream


def file_system(address: str, *, key: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the address as it knows it.

    Raises:
        DataError: an unknown protocol, or the package that speaks it is not installed.
    """
    import fsspec

    protocol = address.split("://", 1)[0]
    try:
        fs, inner = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(protocol)
        remedy = f"Install it: pip install {package}" if package else "Correct the address"
        raise DataError(f"{key} lists {address!r}, but nothing here reads {protocol}:// ({error}). {remedy}.") from None
    return fs, inner


def digest(path: str | Path) -> str:
    """xxh3 (128 bits) of a file's content, in hex.

    Raises:
        OSError: it cannot be read.
    """
    import xxhash

    state = xxhash.xxh3_128()
    with open_file(str(path)) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _resolve(pattern: str, *, key: str) -> list[tuple[str, int]]:
    """Paths and sizes."""
    if pattern.startswith(BUNDLED_PREFIX):
        path = BUNDLED_DIR / (pattern.removeprefix(BUNDLED_PREFIX) + BUNDLED_SUFFIX)
        if not path.is_file():
            names = sorted(p.name.removesuffix(BUNDLED_SUFFIX) for p in BUNDLED_DIR.glob("*" + BUNDLED_SUFFIX))
            raise DataError(
                f"{key} lists {pattern!r}, which is not shipped. Bundled text: {', '.join(names) or 'none'}."
            )
        return _measured([str(path)], key=key)
    if is_remote(pattern):
        return _resolve_remote(pattern, key=key)
    if Path(pattern).is_file():
        return _measured([pattern], key=key)
    matches = sorted(glob.glob(pattern, recursive=True))
    where = f"(from {Path.cwd()})"
    if not matches and glob.has_magic(pattern):
        raise DataError(f"{key} lists {pattern!r}, which matches no file {where}. Correct the pattern.")
    if not matches:
        raise DataError(f"{key} lists {pattern!r}, which does not exist {where}. Correct the path.")
    if matches == [pattern]:
        from pretrain.data.folders import files_of_folder

        return _measured(files_of_folder(pattern, key=key), key=key)
    files = [match for match in matches if Path(match).is_file()]
    if not files:
        raise DataError(f"{key} lists {pattern!r}, which matches folders only. List their files: '{pattern}/*.jsonl'.")
    return _measured(files, key=key)


def _measured(paths: Sequence[str], *, key: str) -> list[tuple[str, int]]:
    try:
        return [(path, os.stat(path).st_size) for path in paths]
    except OSError as error:
        raise DataError(f"{key}: {error.filename} cannot be read: {error.strerror}.") from None


def _resolve_remote(pattern: str, *, key: str) -> list[tuple[str, int]]:
    fs, inner = file_system(pattern, key=key)
    try:
        if glob.has_magic(inner):
            details = fs.glob(inner, detail=True)
            infos = [details[path] for path in sorted(details) if details[path]["type"] == "file"]
        else:
            infos = [fs.info(inner)]
    except OSError as error:
        raise DataError(
            f"{key} lists {pattern!r}, which cannot be read: {error}. Correct the address or its access."
        ) from None
    if not infos:
        raise DataError(f"{key} lists {pattern!r}, which matches no file. Correct the pattern.")
    if infos[0]["type"] != "file":
        raise DataError(f"{key} lists {pattern!r}, which is a folder. List its files: '{pattern.rstrip('/')}/*.jsonl'.")
    return [(str(fs.unstrip_protocol(info["name"])), int(info["size"])) for info in infos]
