"""Which files a source is made of: paths, globs, `bundled:NAME` and fsspec addresses, found and measured.

The ending says the format. What is in the files is `documents.py`'s business.

Formats: `.jsonl` (also `.json`, `.ndjson`; a document a line), `.txt` (a document a file), both also as `.gz` and
`.zst`; `.parquet`; `.arrow`. A folder is one that `datasets` saved, or a snapshot of a hub data set; see `folders.py`.

datatrove's `DataFolder` lists below one root and drops sizes; a source is a list of patterns over any roots, so fsspec,
which `DataFolder` itself stands on, is asked directly.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pretrain.data.listing import expand, is_folder
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
_LOCAL_PROTOCOLS = ("file", "local")
_MOST_NAMED = 3
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
        other_names: further paths that lead to the same file and were listed, too; it is read once.
    """

    path: str
    format: str
    size: int
    rows: int | None
    is_seekable_lines: bool
    other_names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def find_files(patterns: Sequence[str], *, key: str, token_ids: bool = False) -> list[InputFile]:
    """Files that patterns stand for, in order, each once; the matches of a glob are sorted.

    Two names are one file where their real paths are the same: another spelling, or a link. Copies and hard links are
    files of their own.

    Args:
        patterns: as written in the configuration.
        key: the configuration key, for errors.
        token_ids: the files hold lines with `token_ids`, not text.

    Raises:
        DataError: nothing is listed, a file is missing or of no known format, a glob matches nothing, a folder may not
            be listed, a link leads nowhere, no text of that name is shipped, or a package that reads such addresses is
            missing.
    """
    from pretrain.data.tables import count_rows

    if not patterns:
        raise DataError(f"{key} is empty. List JSONL files, globs or {BUNDLED_PREFIX}NAME, or remove the source.")
    found: dict[str, InputFile] = {}
    folders: dict[str, str] = {}
    for pattern in patterns:
        for path, size in _resolve(pattern, key=key):
            real = _real_path(path, folders)
            if real in found:
                if path not in (found[real].path, *found[real].other_names):
                    found[real] = replace(found[real], other_names=(*found[real].other_names, path))
                continue
            form = format_of(path, key=key)
            if token_ids:
                if form != "jsonl":
                    raise DataError(f"{key} lists {path}; lines with `token_ids` are read from .jsonl files only.")
                form = TOKEN_IDS
            rows = count_rows(path, form) if form in ("parquet", "arrow") else None
            is_seekable = form in ("jsonl", TOKEN_IDS) and not packing_of(path)
            found[real] = InputFile(path, form, size, rows, is_seekable)
    return list(found.values())


def tell_repeats(files: Mapping[str, Sequence[InputFile]]) -> Iterator[str]:
    """Sentences on files that were found more than once.

    A file that one source has by several names is read once for it; a file of two sources is read for both.

    Args:
        files: of each source.
    """
    owners: dict[str, list[str]] = {}
    folders: dict[str, str] = {}
    for source, listed in files.items():
        for file in listed:
            owners.setdefault(_real_path(file.path, folders), []).append(source)
        repeated = [file for file in listed if file.other_names]
        if repeated:
            named = "; ".join(" and ".join((file.path, *file.other_names)) for file in repeated[:_MOST_NAMED])
            yield f"{source}: these names stand for one file, which is read once: {named}{_more(repeated)}"
    shared: dict[tuple[str, ...], list[str]] = {}
    for path, sources in owners.items():
        if len(sources) > 1:
            shared.setdefault(tuple(sources), []).append(path)
    for owning, paths in shared.items():
        yield (
            f"{' and '.join(owning)} have the same files, whose text is read for each of them: "
            f"{', '.join(paths[:_MOST_NAMED])}{_more(paths)}"
        )


def format_of(path: str, *, key: str) -> str:
    """Format of a file, by its ending.

    Raises:
        DataError: an unknown ending.
    """
    form = _format(path)
    if form is None:
        known = [*_FORMATS, *(f"{e}{p}" for e, f in _FORMATS.items() if f in _PACKED_FORMATS for p in _PACKED)]
        raise DataError(
            f"{key} lists {path}, whose ending says no known format. Known: {', '.join(sorted(known))}. Rename or "
            "convert the file, or correct the pattern."
        )
    return form


def packing_of(path: str) -> str:
    """How a file is packed, by its ending: `.gz`, `.zst` or nothing; capitals count as small letters."""
    return next((packing for packing in _PACKED if path.lower().endswith(packing)), "")


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


def _format(path: str) -> str | None:
    name = path.rsplit("/", 1)[-1].lower()
    inner = name.removesuffix(packing_of(name))
    form = _FORMATS.get(os.path.splitext(inner)[1])
    return form if inner == name or form in _PACKED_FORMATS else None


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
    if pattern.split("://", 1)[0] in _LOCAL_PROTOCOLS and is_remote(pattern):
        fs, inner = file_system(pattern, key=key)
        return [(str(fs.unstrip_protocol(path)), size) for path, size in _resolve_local(inner, pattern, key=key)]
    if is_remote(pattern):
        return _resolve_remote(pattern, key=key)
    return _resolve_local(pattern, pattern, key=key)


def _resolve_local(path: str, pattern: str, *, key: str) -> list[tuple[str, int]]:
    """Paths and sizes of what a path or glob matches; `pattern` is how it stands in the configuration."""
    from pretrain.data.folders import files_of_folder

    if os.path.isfile(path):
        return _measured([path], key=key)
    matches = expand(path, key=key)
    where = f"(from {Path.cwd()})"
    if not matches and glob.has_magic(path):
        raise DataError(f"{key} lists {pattern!r}, which matches no file {where}. Correct the pattern.")
    if not matches:
        raise DataError(f"{key} lists {pattern!r}, which does not exist {where}. Correct the path.")
    folders = {match for match in matches if is_folder(match, key=key)}
    if not glob.has_magic(path):
        return _measured(files_of_folder(path, key=key), key=key)
    files = [match for match in matches if match not in folders]
    if not files:
        raise DataError(f"{key} lists {pattern!r}, which matches folders only. List their files: '{pattern}/*.jsonl'.")
    for folder in sorted(folders):
        if _format(folder) is not None and not any(file.startswith(f"{folder}/") for file in files):
            raise DataError(
                f"{key} lists {pattern!r}, which matches {folder}, a folder that is named like a file. List its files, "
                f"'{folder}/*{os.path.splitext(folder)[1]}', or correct the pattern."
            )
    return _measured(files, key=key)


def _measured(paths: Sequence[str], *, key: str) -> list[tuple[str, int]]:
    try:
        return [(path, os.stat(path).st_size) for path in paths]
    except OSError as error:
        raise DataError(f"{key}: {error.filename} cannot be read: {error.strerror}.") from None


def _resolve_remote(pattern: str, *, key: str) -> list[tuple[str, int]]:
    fs, inner = file_system(pattern, key=key)
    try:
        infos = _glob_remote(fs, inner) if glob.has_magic(inner) else [fs.info(inner)]
    except OSError as error:
        raise DataError(
            f"{key} lists {pattern!r}, which cannot be read: {error}. Correct the address or its access."
        ) from None
    if not infos:
        raise DataError(f"{key} lists {pattern!r}, which matches no file. Correct the pattern.")
    if infos[0]["type"] != "file":
        raise DataError(f"{key} lists {pattern!r}, which is a folder. List its files: '{pattern.rstrip('/')}/*.jsonl'.")
    return [(str(fs.unstrip_protocol(info["name"])), int(info["size"])) for info in infos]


def _glob_remote(fs: Any, pattern: str) -> list[dict[str, Any]]:
    """What fsspec says of the files that a glob matches.

    Raises:
        OSError: a folder cannot be listed, or a link leads nowhere or to a folder.
    """
    from fsspec import AbstractFileSystem

    if type(fs).find is AbstractFileSystem.find:  # object stores list by prefix instead, and raise what goes wrong
        _require_listed(fs, pattern)
    details = fs.glob(pattern, detail=True)
    infos = []
    for path in sorted(details):
        info = details[path]
        if info["type"] not in ("file", "directory"):
            info = {**fs.info(path), "name": info["name"]}  # a link: what it leads to
            if info["type"] != "file":
                raise OSError(f"{path} is a link to a folder, which is not followed here")
        if info["type"] == "file":
            infos.append(info)
    return infos


def _require_listed(fs: Any, pattern: str) -> None:
    """Lists every folder that fsspec's `glob` enters, because that passes over those which cannot be listed."""
    fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)].rpartition("/")[0]
    depth = None if "**" in pattern else pattern[len(fixed) :].strip("/").count("/")
    waiting = [(fixed, depth)]
    while waiting:
        folder, left = waiting.pop()
        with contextlib.suppress(FileNotFoundError):  # then there is nothing to list
            for _, folders, _ in fs.walk(folder, maxdepth=1, detail=True, on_error="raise"):
                if left is None or left > 0:
                    deeper = None if left is None else left - 1
                    waiting += [(info["name"], deeper) for info in folders.values()]


def _real_path(path: str, folders: dict[str, str]) -> str:
    """What two names of one file have in common. `folders` keeps those that were looked up before."""
    protocol, _, inner = path.rpartition("://")
    if protocol not in ("", *_LOCAL_PROTOCOLS):
        return path
    folder, name = os.path.split(inner)
    if os.path.islink(inner) or name in ("", ".", ".."):
        return os.path.realpath(inner)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _more(listed: Sequence[Any]) -> str:
    return f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
