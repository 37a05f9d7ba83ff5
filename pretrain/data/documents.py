"""Raw text: JSONL files (plain, .gz, .zst) as a stream of documents, one at a time in bounded memory.

Knows files and lines and nothing of tokens. Whatever is wrong with a file is reported with its name and line.
`bundled:NAME` is text shipped with the package.
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import DataError

BUNDLED_PREFIX = "bundled:"
BUNDLED_DIR = Path(__file__).parent / "corpus"
_SUFFIX = ".jsonl.zst"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where it was read.

    Attributes:
        text: its text, exactly; may be empty.
        split: `meta.split` of its line, if given.
        file: the file it is in.
        line: its line there, from 1.
    """

    text: str
    split: str | None
    file: Path
    line: int


def resolve_paths(patterns: Sequence[str], *, key: str) -> list[Path]:
    """Files that paths, globs and `bundled:NAME` stand for, in order, each once; the matches of a glob are sorted.

    Args:
        patterns: as written in the configuration.
        key: the configuration key, for errors.

    Raises:
        DataError: nothing is listed, a file is missing, a glob matches nothing, or no text of that name is shipped.
    """
    if not patterns:
        raise DataError(f"{key} is empty. List JSONL files, globs or {BUNDLED_PREFIX}NAME, or remove the source.")
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(_resolve(pattern, key=key)))
    return list(found)


def read_documents(paths: Iterable[Path], *, text_key: str = "text") -> Iterator[Document]:
    """Streams the documents of JSONL files, in order. Blank lines are skipped.

    Args:
        paths: files; the ending decides how they are unpacked.
        text_key: field that holds the text.

    Raises:
        DataError: naming file and line: unreadable, damaged or cut short, invalid UTF-8 or JSON, field missing or
            not text; or a file without a single document.
    """
    for path in paths:
        number = 0
        is_empty = True
        try:
            for number, line in enumerate(_lines(_chunks(path)), start=1):
                if line.strip():
                    is_empty = False
                    yield _document(line, text_key=text_key, path=path, number=number)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise _damaged(path, number, str(error)) from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
        if is_empty:
            raise DataError(f"{path} holds no documents. Remove it from data.sources or write it again.")


def _resolve(pattern: str, *, key: str) -> list[Path]:
    if pattern.startswith(BUNDLED_PREFIX):
        path = BUNDLED_DIR / (pattern.removeprefix(BUNDLED_PREFIX) + _SUFFIX)
        if not path.is_file():
            names = sorted(p.name.removesuffix(_SUFFIX) for p in BUNDLED_DIR.glob("*" + _SUFFIX))
            raise DataError(
                f"{key} lists {pattern!r}, which is not shipped. Bundled text: {', '.join(names) or 'none'}."
            )
        return [path]
    if Path(pattern).is_file():
        return [Path(pattern)]
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not matches and glob.has_magic(pattern):
        raise DataError(f"{key} lists {pattern!r}, which matches no file (from {Path.cwd()}). Correct the pattern.")
    if not matches:
        raise DataError(f"{key} lists {pattern!r}, which does not exist (from {Path.cwd()}). Correct the path.")
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(f"{key} lists {pattern!r}, which is a folder. List its files, for example '{pattern}/*.jsonl'.")
    return files


def _chunks(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _zstd_chunks(path)
        return
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Unpacks frame by frame: zstandard's own file reader takes the end of a torn file for the end of the text."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    try:
        with path.open("rb") as stream:
            while packed := stream.read(_CHUNK_BYTES):
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


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their newline; the last one may lack it."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def _document(line: bytes, *, text_key: str, path: Path, number: int) -> Document:
    where = f"{path}, line {number}"
    try:
        fields: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte 0x{line[error.start]:02x} at offset {error.start} of the line. "
            "Convert the file to UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg} at character {error.pos}. One object per line.") from None
    except RecursionError:
        raise DataError(f"{where} is not a document: its JSON is nested too deeply.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where} holds a JSON {type(fields).__name__}; a document is an object with {text_key!r}.")
    if text_key not in fields:
        raise DataError(
            f"{where} has no field {text_key!r}; it has {', '.join(map(repr, sorted(fields))) or 'none'}. "
            "Set data.text_key to the field that holds the text."
        )
    text = fields[text_key]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {text_key!r} holds {type(text).__name__}, not a string.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: field {text_key!r} holds a lone surrogate at character {error.start}, which is not valid "
                "Unicode. Repair or drop the document."
            ) from None
    return Document(text, _split(fields.get("meta"), where=where), path, number)


def _split(meta: Any, *, where: str) -> str | None:
    split = meta.get("split") if isinstance(meta, dict) else None
    if split is not None and split not in ("train", "validation"):
        raise DataError(f"{where}: meta.split={split!r}; allowed are 'train', 'validation' or no mark.")
    return split


def _damaged(path: Path, number: int, reason: str) -> DataError:
    return DataError(f"{path} is damaged after line {number}: {reason or 'it ends early'}. Copy or write it again.")
