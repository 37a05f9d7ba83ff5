"""Overlap of a corpus with evaluation items: which items and which documents, and the corpus without those documents.

The corpus is streamed, over processes by file; what is held is the index of items (`ngrams.py`). Where items come from
is for the caller to say: this module knows files of items, and no tasks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, cast

from pretrain.data.documents import Document, Piece, Rejected, read_piece
from pretrain.data.files import InputFile, find_files, is_remote, packing_of
from pretrain.data.lines import Broken, read_chunks, read_lines
from pretrain.data.ngrams import Item, NgramIndex, iterate_texts
from pretrain.durable import replacing
from pretrain.errors import DataError

_LONGEST_ITEM_BYTES = 1 << 26
_NO_TEXT = ("id", "task", "idx", "gold", "label", "labels")


@dataclass(frozen=True, slots=True)
class Found:
    """A document that overlaps with an item.

    Attributes:
        source: of the corpus.
        file: the document's file.
        line: its line or row there, from 1.
        task: the item's task.
        item: the item's name.
        num_words: longest run of words they share.
        excerpt: that run, normalised.
    """

    source: str
    file: str
    line: int
    task: str
    item: str
    num_words: int
    excerpt: str


@dataclass(slots=True)
class FileResult:
    """What one file holds.

    Attributes:
        documents: documents read.
        rejected: lines that gave none.
        bytes_read: bytes of its lines, documents or rows.
        rejected_bytes: of these, bytes of the lines that gave no document.
        dropped: documents left out of the copy, where one was written.
        found: its overlaps, in order of documents.
    """

    documents: int = 0
    rejected: int = 0
    bytes_read: int = 0
    rejected_bytes: int = 0
    dropped: int = 0
    found: list[Found] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a corpus is read and written.

    Attributes:
        text_keys: of each source, the field or column that holds its text.
        max_line_bytes: longer lines are not read.
        drop_to: folder that takes the files without overlapping documents; None writes none.
    """

    text_keys: Mapping[str, str]
    max_line_bytes: int
    drop_to: Path | None = None


def read_items(*paths: str | Path) -> list[Item]:
    """Items of JSONL files: every string in a line is text of its item, apart from `id`, `task` and labels.

    Args:
        paths: files or globs of `.jsonl`, `.jsonl.gz` or `.jsonl.zst`. `task` is the file's name where a line has none,
            `id` its number.

    Raises:
        DataError: a line that is no object, or a file without items.
    """
    return [item for file in find_files([str(path) for path in paths], key="--items") for item in _items_of(file)]


def _items_of(file: InputFile) -> list[Item]:
    if file.format != "jsonl":
        raise DataError(f"--items={file.path} is not JSONL. Give a line an item.")
    stem = file.name.split(".jsonl")[0]
    items: list[Item] = []
    number = 0
    try:
        for number, _, data, _ in read_lines(file, max_line_bytes=_LONGEST_ITEM_BYTES):
            if data is None or data.strip():
                items.append(_item(data, stem=stem, number=number))
    except (Broken, ValueError) as error:
        raise DataError(f"--items={file.path}, line {number}: {error}. Give a JSON object an item.") from None
    if not items:
        raise DataError(f"--items={file.path} holds no items.")
    return items


def item_of(record: Mapping[str, Any], *, task: str, name: str) -> Item:
    """An item of a data set's record: its strings, without those that name it."""
    texts = iterate_texts({key: value for key, value in record.items() if key not in _NO_TEXT})
    return Item(task, name, tuple(texts))


def scan(
    sources: Mapping[str, Sequence[InputFile]], index: NgramIndex, *, settings: Settings, num_processes: int = 1
) -> dict[str, FileResult]:
    """Reads a corpus and finds its overlaps; with `drop_to` writes it again without them, file by file, atomically.

    Args:
        sources: files by source.
        index: the items.
        settings: see there.
        num_processes: processes that files are spread over.

    Returns:
        Results by source.

    Raises:
        DataError: a file that breaks off, or cannot be copied.
    """
    work = [(source, file) for source, files in sources.items() for file in files]
    if settings.drop_to is not None:
        _check_copies([file for _, file in work], settings.drop_to)
    results = {source: FileResult() for source in sources}
    if num_processes > 1 and len(work) > 1:
        with ProcessPoolExecutor(
            min(num_processes, len(work)), get_context("spawn"), _start_process, (index, settings)
        ) as pool:
            parts = list(pool.map(_scan_in_process, *zip(*work, strict=True)))
    else:
        parts = [_scan_file(source, file, index, settings) for source, file in work]
    for (source, _), part in zip(work, parts, strict=True):
        whole = results[source]
        whole.documents += part.documents
        whole.rejected += part.rejected
        whole.bytes_read += part.bytes_read
        whole.rejected_bytes += part.rejected_bytes
        whole.dropped += part.dropped
        whole.found += part.found
    return results


def report_of(results: Mapping[str, FileResult], index: NgramIndex) -> dict[str, Any]:
    """Per task its items and how many overlap, per source its documents and how many do, and each overlap."""
    tasks: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(index.items):
        task = tasks.setdefault(item.task, {"items": 0, "too_short": 0, "overlapping": 0, "longest_words": 0})
        task["items"] += 1
        task["too_short"] += number in index.too_short
    found = [overlap for result in results.values() for overlap in result.found]
    for name, task in tasks.items():
        mine = [overlap for overlap in found if overlap.task == name]
        task["overlapping"] = len({overlap.item for overlap in mine})
        task["longest_words"] = max((overlap.num_words for overlap in mine), default=0)
    return {
        "ngram": index.num_words,
        "tasks": tasks,
        "sources": {
            source: {
                "documents": result.documents,
                "rejected": result.rejected,
                "bytes_read": result.bytes_read,
                "rejected_bytes": result.rejected_bytes,
                "overlapping": len({(overlap.file, overlap.line) for overlap in result.found}),
                "dropped": result.dropped,
            }
            for source, result in results.items()
        },
        "overlaps": [asdict(overlap) for overlap in found],
    }


def _item(line: bytes | None, *, stem: str, number: int) -> Item:
    if line is None:
        raise ValueError(f"longer than {_LONGEST_ITEM_BYTES:,} bytes")
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    return item_of(record, task=str(record.get("task", stem)), name=str(record.get("id", number)))


_process: tuple[NgramIndex, Settings]


def _start_process(index: NgramIndex, settings: Settings) -> None:
    global _process
    _process = index, settings


def _scan_in_process(source: str, file: InputFile) -> FileResult:
    return _scan_file(source, file, *_process)


def _scan_file(source: str, file: InputFile, index: NgramIndex, settings: Settings) -> FileResult:
    result = FileResult()
    for item in read_piece(Piece(file), text_key=settings.text_keys[source], max_line_bytes=settings.max_line_bytes):
        result.bytes_read += item.num_bytes
        if isinstance(item, Document):
            result.documents += 1
            for overlap in index.overlaps(item.text):
                known = index.items[overlap.item]
                result.found.append(
                    Found(source, item.file, item.line, known.task, known.id, overlap.num_words, overlap.excerpt)
                )
        elif isinstance(item, Rejected):
            result.rejected += 1
            result.rejected_bytes += item.num_bytes
            if item.is_damage:
                raise DataError(f"{item.file}: {item.detail}")
    if settings.drop_to is not None:
        lines = {overlap.line for overlap in result.found}
        _write_without(file, lines, settings.drop_to / file.name, max_line_bytes=settings.max_line_bytes)
        result.dropped = len(lines)
    return result


def _check_copies(files: Sequence[InputFile], folder: Path) -> None:
    names: dict[str, str] = {}
    for file in files:
        if file.format not in ("jsonl", "text"):
            raise DataError(
                f"{file.path}: documents are dropped from JSONL and text files only. Leave --drop off for the report, "
                "and filter the table by its `overlaps`."
            )
        if file.name in names:
            raise DataError(f"{file.path} and {names[file.name]} have one name: drop them into two folders.")
        names[file.name] = file.path
        own = () if is_remote(file.path) else (Path(file.path).resolve().parent, Path(file.path).parent.resolve())
        if folder.resolve() in own:
            raise DataError(f"--out={folder} is the folder of {file.path}, which would be replaced. Give another one.")
        if (folder / file.name).exists():
            raise DataError(
                f"--out={folder} holds {file.name} already, which would be replaced. Give a folder that does not exist."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out={folder} cannot be made: {error.strerror}.") from None


def _write_without(file: InputFile, dropped: set[int], target: Path, *, max_line_bytes: int) -> None:
    """Copies a file, lines byte for byte, without some of them and without a byte order mark.

    A text file is one document, so it is copied or not.
    """
    if file.format == "text" and dropped:
        return
    try:
        with replacing(target) as temporary, ExitStack() as opened:
            out = _packed(temporary, file.path, opened)
            for content in _kept(file, dropped, max_line_bytes=max_line_bytes):
                out.write(content)
    except Broken as broken:
        raise DataError(f"{file.path}: {broken}") from None
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}.") from None


def _kept(file: InputFile, dropped: set[int], *, max_line_bytes: int) -> Iterator[bytes]:
    if file.format == "text":
        yield from read_chunks(file)
        return
    for line in read_lines(file, max_line_bytes=max_line_bytes):
        if line.number in dropped:
            continue
        if line.data is None:
            raise DataError(
                f"{file.path}, line {line.number} has {line.size:,} bytes, more than data.max_line_bytes="
                f"{max_line_bytes:,}: it cannot be copied. Raise it, or leave the file out."
            )
        yield line.data + b"\n"


def _packed(path: Path, like: str, opened: ExitStack) -> IO[bytes]:
    """A file to write to, packed as the ending of another says."""
    stream = opened.enter_context(path.open("wb"))
    packing = packing_of(like)
    if packing == ".gz":
        return cast(IO[bytes], opened.enter_context(gzip.GzipFile("", "wb", fileobj=stream, mtime=0)))
    if packing == ".zst":
        import zstandard

        packer: IO[bytes] = opened.enter_context(zstandard.ZstdCompressor(write_checksum=True).stream_writer(stream))
        return packer
    return stream
