"""Rows and columns of a file: CSV, TSV, semicolons with decimal commas, JSON lines, a JSON list or Parquet.

All of them may be compressed. Arrow parses. What columns mean is in `probes.dynamics.columns`; tables with a column for
each score are turned into rows by `probes.dynamics.wide`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pretrain.errors import ProbeError
from probes.dynamics.columns import is_text
from probes.dynamics.compressed import COMPRESSED, content_of, plain_name

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings of tables of scores, before that of a compression."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_QUOTED = re.compile(r'"[^"]*"')
_DECIMAL_COMMA = re.compile(r"(?:^|[;\t|])-?\d*,\d+(?=[;\t|]|$)", re.MULTILINE)
_MISSING = ("", "#N/A", "#NA", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null", "None", "-", "–", "—")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_PACKED = {b"\x1f\x8b": ".gz", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst", b"PK\x03\x04": ".xlsx or .zip"}


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as it was written.

    Attributes:
        table: its columns, under the names the file gives them.
        source: names it in messages.
        where: names a row, counted from 0, in messages: `line 3` for the second one of a CSV file.
        notes: what is to be said of how it was read.
    """

    table: pa.Table
    source: str
    where: Callable[[int], str]
    notes: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Whether a file of this name is a table of scores."""
    return plain_name(name).endswith(TABLES)


def is_list(path: Path) -> bool:
    """Whether a JSON file holds a list of rows, rather than lm-eval's results."""
    return content_of(path).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def read_rows(path: Path) -> Rows:
    """Reads a file of `TABLES`, or a `.json` file that holds a list of objects.

    Raises:
        ProbeError: it cannot be read, is in another encoding, or has no rows.
    """
    content, name = content_of(path), plain_name(path.name)
    if not content.strip():
        raise ProbeError(f"{path} is empty: a table of scores has a line of column names and one row per score.")
    if name.endswith(".parquet"):
        rows = _parquet(content, path)
    elif name.endswith((".jsonl", ".ndjson", ".json")):
        rows = _json(_text(content, path), path, is_list=name.endswith(".json"))
    else:
        rows = _csv(_text(content, path), path)
    if not len(rows.table):
        raise ProbeError(f"{path} has no rows, only the columns {', '.join(rows.table.column_names)}.")
    return rows


def _text(content: bytes, path: Path) -> str:
    if content.startswith(_UTF_16):
        raise ProbeError(f"{path} is encoded as UTF-16. Save it as UTF-8 (in Excel: CSV UTF-8).")
    packed = next((kind for start, kind in _PACKED.items() if content.startswith(start)), None)
    if packed is not None:
        remedy = "Save it as CSV UTF-8." if "xlsx" in packed else f"Let its name end in {packed}."
        raise ProbeError(f"{path} is no text but a {packed} file by its first bytes. {remedy}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ProbeError(
            f"{path}, line {line}, is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8; Excel "
            "calls it CSV UTF-8."
        ) from error


def _parquet(content: bytes, path: Path) -> Rows:
    try:
        table = pa.parquet.read_table(pa.BufferReader(content))
    except (OSError, pa.ArrowInvalid) as error:
        raise ProbeError(f"{path} cannot be read as a table of scores: {error}") from error
    return Rows(table, str(path), lambda row: f"row {row + 1}")


def _csv(text: str, path: Path) -> Rows:
    header = next(line for line in text.splitlines() if line.strip())
    bare = _QUOTED.sub("", header)
    delimiter = max(_DELIMITERS, key=bare.count)
    if (
        path.name.lower().removesuffix(path.suffix if path.suffix in COMPRESSED else "").endswith(".tsv")
        and "\t" in bare
    ):
        delimiter = "\t"
    notes = [] if delimiter == "," else [f"{path}: columns are separated by {_DELIMITERS[delimiter]}."]
    decimal = "."
    if delimiter != "," and (found := _DECIMAL_COMMA.search(text)):
        decimal = ","
        notes = [f"{notes[0][:-1]}, numbers have decimal commas (as {found[0].lstrip(';|').strip()})."]
    names = next(csv.reader([header], delimiter=delimiter))
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(text.encode()),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values='"' in text),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names if is_text(name)},
                null_values=_MISSING,
                decimal_point=decimal,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ProbeError(f"{path} cannot be read as a table of scores: {error}") from error
    return Rows(table, str(path), _line_in(text, delimiter), tuple(notes))


def _line_in(text: str, delimiter: str) -> Callable[[int], str]:
    def where(row: int) -> str:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        written = (reader.line_num for fields in reader if fields)
        next(written, None)
        return f"line {next((line for number, line in enumerate(written) if number == row), row + 2)}"

    return where


def _json(text: str, path: Path, *, is_list: bool) -> Rows:
    """JSON lines, or one list of objects. What is an object or a list inside a row is left out."""
    objects: list[Any] = []
    lines: list[int] = []
    if is_list:
        found = _loaded(text, f"{path}")
        if not isinstance(found, list):
            raise ProbeError(
                f"{path} holds {type(found).__name__}, not a list of rows with run, task, metric and value."
            )
        objects, lines = found, list(range(1, len(found) + 1))
    else:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                objects.append(_loaded(line, f"{path}, line {number},"))
                lines.append(number)
    unit = "row" if is_list else "line"
    for number, one in zip(lines, objects, strict=True):
        if not isinstance(one, dict):
            raise ProbeError(f"{path}, {unit} {number}, holds {type(one).__name__}, not an object with named fields.")
    names = dict.fromkeys(name for one in objects for name in one)
    columns = {}
    for name in names:
        cells = [one.get(name) for one in objects]
        if any(isinstance(cell, dict | list) for cell in cells):
            continue
        if any(isinstance(cell, str) for cell in cells):
            cells = [None if cell is None else str(cell) for cell in cells]
        columns[name] = pa.array(cells, from_pandas=True)
    return Rows(pa.table(columns), str(path), lambda row: f"{unit} {lines[row]}")


def _loaded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ProbeError(f"{where} is not JSON: {error}. Mend it or leave it out.") from error
