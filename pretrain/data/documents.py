"""Raw text as a stream of documents, one at a time in bounded memory, whatever is wrong with the files.

Knows files and lines and nothing of tokens. A line that gives no document is yielded as `Rejected`, named with file,
line and reason; how many of them are too many is for the caller to say.

datatrove's `JsonlReader` is not used: it drops lines that are not JSON with a warning, ends a file at its first byte
that is not UTF-8, and holds a line however long it is. Nothing would be counted, and a file cut short would look whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from pretrain.data.files import TOKEN_IDS, InputFile
from pretrain.data.lines import BYTE_ORDER_MARK, Broken, Line, read_chunks, read_lines
from pretrain.data.records import (
    Document,
    Item,
    Piece,
    Rejected,
    TokenRow,
    Unfit,
    not_utf8,
    require_split,
    require_text,
    too_long,
)

__all__ = ["Document", "Piece", "Rejected", "TokenRow", "read_piece"]
_INT32_MAX = 2**31 - 1


def read_piece(
    piece: Piece, *, text_key: str, max_line_bytes: int, skip: int = 0, row_tokens: int | None = None
) -> Iterator[Item]:
    """Documents of a piece, in order; what gives none is yielded as `Rejected` in its place.

    The same piece gives the same items every time. Blank lines are not items.

    Args:
        piece: a file or a part of one.
        text_key: field of a line, or column of a table, that holds the text.
        max_line_bytes: longer lines, documents and text files are rejected unread. A table's page is read whole by
            Arrow before a document in it can be measured.
        skip: number of items that are passed over, without being parsed.
        row_tokens: of `token_ids` files, how many tokens a row must have; None allows any number.

    Yields:
        `TokenRow` from files of format `token_ids`, `Document` from all others.
    """
    form = piece.file.format
    if form in ("parquet", "arrow"):
        from pretrain.data.tables import read_table

        yield from read_table(piece, text_key=text_key, max_line_bytes=max_line_bytes, skip=skip)
    elif form == "text":
        if skip == 0:
            yield _read_text(piece.file, max_line_bytes=max_line_bytes)
    else:
        yield from _read_lines(piece, text_key, max_line_bytes=max_line_bytes, skip=skip, row_tokens=row_tokens)


def _read_lines(
    piece: Piece, text_key: str, *, max_line_bytes: int, skip: int, row_tokens: int | None
) -> Iterator[Item]:
    file, path = piece.file, piece.file.path
    is_tokens = file.format == TOKEN_IDS
    line = Line(0, piece.start, b"", 0)
    try:
        for line in read_lines(file, start=piece.start, stop=piece.stop, max_line_bytes=max_line_bytes):
            number, byte, data, size = line
            if data is not None and not data.strip():
                continue
            if skip > 0:
                skip -= 1
                continue
            try:
                if data is None:
                    raise too_long(size, max_line_bytes=max_line_bytes)
                fields = _fields(data)
                if is_tokens:
                    item: Item = _token_row(fields, row_tokens=row_tokens, path=path, number=number, num_bytes=size)
                else:
                    text = _text(fields, text_key=text_key)
                    item = Document(text, require_split(fields.get("meta")), path, number, size)
            except Unfit as unfit:
                item = unfit.at(path, number, byte if file.is_seekable_lines else None, num_bytes=size)
            yield item
    except Broken as broken:
        yield broken_off(broken, path, line.number)


def broken_off(broken: Broken, path: str, last: int) -> Rejected:
    """What is yielded in the place of all that could not be read."""
    detail = f"{broken} What follows line {last} is lost." if last else f"{broken} Nothing of it could be read."
    return Rejected(broken.reason, detail, path, last, is_damage=True)


def _fields(line: bytes) -> dict[str, Any]:
    """The object of a line: by orjson where it accepts the line, else as `json` sees it, which says what is wrong."""
    try:
        fields: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        fields = _fields_or_reason(line)
    if not isinstance(fields, dict):
        raise Unfit("invalid_json", f"a JSON {type(fields).__name__}; a document is an object, one a line.")
    return fields


def _fields_or_reason(line: bytes) -> Any:
    """`json` accepts more than orjson (NaN, lone surrogates in fields that are not read): such lines are kept."""
    if b"\0" in line:
        at = line.index(b"\0")
        raise Unfit("nul_byte", f"a NUL byte at offset {at} of the line, as a torn write leaves them. Write it again.")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(line, error) from None
    except json.JSONDecodeError as error:
        raise Unfit("invalid_json", f"not JSON: {error.msg} at character {error.pos}. One object a line.") from None
    except RecursionError:
        raise Unfit("invalid_json", "not a document: its JSON is nested too deeply.") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise Unfit("invalid_json", f"not JSON that can be read: {error}.") from None


def _text(fields: dict[str, Any], *, text_key: str) -> str:
    if text_key not in fields:
        raise Unfit(
            "missing_text",
            f"no field {text_key!r}; it has {', '.join(map(repr, sorted(fields)[:8])) or 'none'}. "
            "Set data.text_key to the field that holds the text, or the source's own text_key.",
        )
    return require_text(fields[text_key], text_key=text_key)


def _token_row(fields: dict[str, Any], *, row_tokens: int | None, path: str, number: int, num_bytes: int) -> TokenRow:
    found = fields.get(TOKEN_IDS)
    if not isinstance(found, list):
        raise Unfit("missing_text", f"no list {TOKEN_IDS!r}; it has {', '.join(map(repr, sorted(fields)[:8]))}.")
    source = fields.get("source")
    if not isinstance(source, str):
        raise Unfit("unknown_source", f"field 'source' is {source!r}; it names one of data.sources.")
    if row_tokens is not None and len(found) != row_tokens:
        raise Unfit("wrong_length", f"{len(found)} token_ids where train.sequence_length + 1 = {row_tokens} are due.")
    try:
        ids = np.array(found)
    except ValueError:  # lists of different lengths within
        ids = np.array([None])
    if len(found) == 0 or ids.dtype.kind != "i" or ids.ndim != 1:
        raise Unfit("bad_token_id", f"token_ids are whole numbers; these begin {found[:4]}.")
    if ids.min() < 0 or ids.max() > _INT32_MAX:
        worst = int(ids.min() if ids.min() < 0 else ids.max())
        raise Unfit(
            "bad_token_id", f"token id {worst} at position {found.index(worst)}; ids are from 0 to {_INT32_MAX}."
        )
    return TokenRow(ids.astype(np.int32), source, path, number, num_bytes)


def _read_text(file: InputFile, *, max_line_bytes: int) -> Document | Rejected:
    """A text file is one document, newlines and all. One that is too long is measured and passed over."""
    parts: list[bytes] = []
    size = 0
    try:
        for chunk in read_chunks(file):
            size += len(chunk)
            if size <= max_line_bytes:
                parts.append(chunk)
            else:
                parts = []
    except Broken as broken:
        return broken_off(broken, file.path, 0)
    try:
        if size > max_line_bytes:
            raise too_long(size, max_line_bytes=max_line_bytes, what="text file, which is one document,")
        data = b"".join(parts).removeprefix(BYTE_ORDER_MARK)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(data, error) from None
        return Document(require_text(text, text_key="text"), None, file.path, 1, size)
    except Unfit as unfit:
        return unfit.at(file.path, 1, num_bytes=size)
