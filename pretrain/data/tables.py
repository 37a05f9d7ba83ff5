"""Documents of Parquet and Arrow tables: a row is a document, of which two columns are read, a few rows at a time.

Arrow files are those of `datasets` (IPC streams) and Feather files (IPC files). They are read, not mapped: mapped pages
count as resident memory of a process, and a mapped file that is cut kills it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from pretrain.data.files import is_remote, open_file
from pretrain.data.kinds import HEAD_BYTES, wrong_table
from pretrain.data.lines import Broken
from pretrain.data.records import (
    Document,
    Item,
    Piece,
    Rejected,
    Unfit,
    not_utf8,
    require_split,
    require_text,
    too_long,
)

_BATCH_BYTES = 1 << 20
_MOST_BATCH_ROWS = 256
_STREAM_BUFFER_BYTES = 1 << 20
_MAGIC = {"parquet": b"PAR1", "arrow": b"ARROW1"}
_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def count_rows(path: str, form: str) -> int | None:
    """Rows of a table, from its index; None where that cannot be read."""
    try:
        with contextlib.ExitStack() as opened:
            if form == "parquet":
                return int(opened.enter_context(_open_parquet(path, opened)).metadata.num_rows)
            return sum(batch.num_rows for batch in _record_batches(path, opened, is_mapped=True))
    except (pa.ArrowException, OSError):
        return None


def read_table(piece: Piece, *, text_key: str, max_line_bytes: int, skip: int) -> Iterator[Item]:
    """Documents of the rows [piece.start, piece.stop); see `documents.read_piece`. Lines are row numbers from 1."""
    path, form = piece.file.path, piece.file.format
    first = piece.start + skip
    stop = piece.stop if piece.stop is not None else 1 << 62
    row = 0
    try:
        with contextlib.ExitStack() as opened:
            batches = _parquet_batches if form == "parquet" else _arrow_batches
            for row, texts, metas in batches(path, opened, text_key, first, stop):
                yield from _documents(path, row, texts, metas, text_key=text_key, max_line_bytes=max_line_bytes)
                row += len(texts)
    except Unfit as unfit:  # the column, not a row: no row of the file can be read
        yield Rejected(unfit.reason, unfit.detail, path, row, is_damage=True)
    except pa.ArrowException as error:
        yield _broken_off(_damage(path, form, error), path, row)
    except OSError as error:
        reason = "damaged" if error.errno is None else "vanished"  # Arrow's own errors of a file's content have none
        yield _broken_off(Broken(reason, f"cannot be read: {error.strerror or error}."), path, row)


def _damage(path: str, form: str, error: pa.ArrowException) -> Broken:
    """What Arrow found wrong; or what the file is, if it is another kind of file."""
    with contextlib.suppress(OSError), open_file(path) as stream:
        head = stream.read(HEAD_BYTES)
        if not head.startswith(_MAGIC[form]) and (problem := wrong_table(head)):
            return Broken("wrong_kind", problem)
    return Broken("damaged", f"damaged: {error}. Copy or write it again.")


def _broken_off(broken: Broken, path: str, row: int) -> Rejected:
    return Rejected(broken.reason, f"{broken} What follows row {row} is lost.", path, row, is_damage=True)


Batch = tuple[int, list[Any], list[Any]]
"""Number of the first row, texts (bytes or None), and `meta` of each row (a dict or None)."""


def _documents(
    path: str, first: int, texts: list[Any], metas: list[Any], *, text_key: str, max_line_bytes: int
) -> Iterator[Item]:
    for number, (data, meta) in enumerate(zip(texts, metas, strict=True), start=first + 1):
        num_bytes = 0 if data is None else len(data)
        try:
            text = data
            if data is not None:
                if len(data) > max_line_bytes:
                    raise too_long(len(data), max_line_bytes=max_line_bytes, what="document")
                try:
                    text = data.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise not_utf8(data, error) from None
            yield Document(require_text(text, text_key=text_key), require_split(meta), path, number, num_bytes)
        except Unfit as unfit:
            yield unfit.at(path, number, num_bytes=num_bytes)


def _open_parquet(path: str, opened: contextlib.ExitStack) -> pq.ParquetFile:
    source = opened.enter_context(open_file(path)) if is_remote(path) else path
    # Buffered, and not read ahead: else a row group's whole column is held.
    return pq.ParquetFile(source, buffer_size=_STREAM_BUFFER_BYTES, pre_buffer=False)


def _parquet_batches(path: str, opened: contextlib.ExitStack, text_key: str, first: int, stop: int) -> Iterator[Batch]:
    table = opened.enter_context(_open_parquet(path, opened))
    schema = table.schema_arrow
    _check_column(schema, text_key)
    columns = [text_key, *(["meta.split"] if _has_split(schema) else [])]
    begin = 0
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        num_rows = about.num_rows
        if begin + num_rows > first and begin < stop:
            size = sum(
                c.total_uncompressed_size
                for c in map(about.column, range(about.num_columns))
                if c.path_in_schema.split(".")[0] == text_key
            )
            batch_rows = max(1, min(_MOST_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, size)))
            row = begin
            for batch in table.iter_batches(batch_rows, [group], columns, use_threads=False):
                low, high = max(first - row, 0), min(stop - row, batch.num_rows)
                if low < high:
                    yield row + low, *_values(batch.slice(low, high - low), text_key)
                row += batch.num_rows
                if row >= stop:
                    break
        begin += num_rows


def _arrow_batches(path: str, opened: contextlib.ExitStack, text_key: str, first: int, stop: int) -> Iterator[Batch]:
    begin = 0
    for batch in _record_batches(path, opened):
        if begin == 0:
            _check_column(batch.schema, text_key)
        for low in range(max(0, first - begin), min(batch.num_rows, stop - begin), _MOST_BATCH_ROWS):
            high = min(low + _MOST_BATCH_ROWS, batch.num_rows, stop - begin)
            yield begin + low, *_values(batch.slice(low, high - low), text_key)
        begin += batch.num_rows
        if begin >= stop:
            return


def _record_batches(path: str, opened: contextlib.ExitStack, *, is_mapped: bool = False) -> Iterator[pa.RecordBatch]:
    """Batches in order. Mapped, only their headers are read until one is looked into."""
    if is_remote(path):
        source = opened.enter_context(pa.PythonFile(opened.enter_context(open_file(path)), mode="r"))
    else:
        source = opened.enter_context(pa.memory_map(path) if is_mapped else pa.OSFile(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if is_file:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from pa.ipc.open_stream(source)


def _values(batch: pa.RecordBatch, text_key: str) -> tuple[list[Any], list[Any]]:
    column = batch.column(batch.schema.get_field_index(text_key))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # As bytes, which are not checked: one row that is not UTF-8 would make the whole column unreadable.
    texts = column.cast(pa.large_binary()).to_pylist()
    if not _has_split(batch.schema):
        return texts, [None] * len(texts)
    return texts, [
        meta and {"split": meta["split"]} for meta in batch.column(batch.schema.get_field_index("meta")).to_pylist()
    ]


def _check_column(schema: pa.Schema, text_key: str) -> None:
    if text_key not in schema.names:
        raise Unfit(
            "missing_text",
            f"no column {text_key!r}; it has {', '.join(map(repr, schema.names[:8])) or 'none'}. Set data.text_key to "
            "the column that holds the text, or the source's own text_key.",
        )
    kind = schema.field(text_key).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in _TEXT_TYPES):
        raise Unfit("not_text", f"column {text_key!r} holds {kind}, not strings. Set data.text_key.")


def _has_split(schema: pa.Schema) -> bool:
    if "meta" not in schema.names:
        return False
    kind = schema.field("meta").type
    return pa.types.is_struct(kind) and kind.get_field_index("split") >= 0
