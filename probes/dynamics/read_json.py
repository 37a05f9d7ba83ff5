"""Columns from files of JSON lines, fast: hundreds of runs have millions of them.

Three ways to the same arrays: lines whose fields all come in one order are cut at their commas; others are read by
Arrow; what Arrow refuses is read by Python. A last line without its end was being written when the run was killed and
is passed over; damage before it is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from pretrain.errors import ProbeError

_LARGEST_BLOCK_BYTES = 1 << 26
_CUT_BLOCK_BYTES = 1 << 20
_SAMPLE = 256


def read_bytes(path: Path) -> bytes:
    """What a file holds; nothing if it is missing.

    Raises:
        ProbeError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error


def columns_of(
    content: bytes, path: Path, *, numbers: Sequence[str], texts: Sequence[str] = (), order: Sequence[str] = ()
) -> dict[str, Any]:
    """Fields of R objects, one a line; other fields are not looked at.

    Args:
        content: of the file.
        path: names it in errors.
        numbers: fields to read as float64 arrays of R; nan where a line has no number.
        texts: fields to read as Arrow dictionary arrays of R; null where a line has no text.
        order: all fields in the order in which `json.dumps` is known to have written them; tried first.

    Raises:
        ProbeError: a line before the last that is not a JSON object.
    """
    if not content or content.isspace():
        return _arrays([[] for _ in numbers], numbers) | {name: _encoded([]) for name in texts}
    whole = content if content.endswith(b"\n") else content[: content.rfind(b"\n") + 1] + _if_whole(content)
    cut = _at_commas(whole, numbers=numbers, texts=texts, order=order) if order else None
    if cut is not None:
        return cut
    schema = pa.schema([(name, pa.float64()) for name in numbers] + [(name, pa.string()) for name in texts])
    try:
        table = pa.json.read_json(
            pa.BufferReader(whole),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=min(len(whole) + 1, _LARGEST_BLOCK_BYTES)),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return _slowly(whole, path, numbers=numbers, texts=texts)
    found: dict[str, Any] = {name: table[name].to_numpy() for name in numbers}
    return found | {name: table[name].combine_chunks().dictionary_encode() for name in texts}


def _at_commas(
    content: bytes, *, numbers: Sequence[str], texts: Sequence[str], order: Sequence[str]
) -> dict[str, Any] | None:
    """The columns, if every line is `{"first": …, "second": …, …}` with these fields and no comma within one.

    Arrow's CSV reader cuts lines in a third of the time its JSON reader takes; every field is checked to begin with its
    name, so that a file which is not so written is not read this way.
    """
    ends = order[0], order[-1]
    wanted = [name for name in order if name in (*numbers, *texts, *ends)]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content),
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=list(order), block_size=_CUT_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(delimiter=",", quote_char=False),
            convert_options=pa.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), check_utf8=True
            ),
        )
        is_whole = pc.and_(pc.starts_with(table[ends[0]], "{"), pc.ends_with(table[ends[1]], "}"))
        if not pc.all(is_whole).as_py():
            return None
        found: dict[str, Any] = {}
        for place, name in enumerate(order):
            if name in (*numbers, *texts):
                start, end = f'{" " if place else "{"}"{name}": ', "}" if place == len(order) - 1 else ""
                column = table[name].combine_chunks()
                found[name] = _texts_in(column, start, end) if name in texts else _numbers_in(column, start, end)
    except (pa.ArrowInvalid, ValueError):
        return None
    return found if len(found) == len(numbers) + len(texts) else None


def _texts_in(column: pa.Array, start: str, end: str) -> pa.Array:
    """Strings of JSON after what stands before and after each, as a dictionary array."""
    encoded = column.dictionary_encode()
    told = [json.loads(_inner(value, start, end)) for value in encoded.dictionary.to_pylist()]
    if not all(isinstance(value, str) for value in told) or len(set(told)) < len(told):
        raise ValueError("not a text in every line")
    return pa.DictionaryArray.from_arrays(encoded.indices, pa.array(told, pa.string()))


def _numbers_in(column: pa.Array, start: str, end: str) -> np.ndarray:
    """Numbers of JSON as float64: each different one is read once, unless nearly all differ."""
    if len(pc.unique(column.slice(0, _SAMPLE))) > _SAMPLE // 4:
        if end or not pc.all(pc.starts_with(column, start)).as_py():
            raise ValueError("another field")
        inner = pc.utf8_slice_codeunits(column, len(start))
        return pc.cast(inner, pa.float64()).to_numpy()
    encoded = column.dictionary_encode()
    told = [json.loads(_inner(value, start, end)) for value in encoded.dictionary.to_pylist()]
    return np.array([_number(value) for value in told], np.float64)[encoded.indices.to_numpy()]


def _inner(value: str, start: str, end: str) -> str:
    if not (value.startswith(start) and value.endswith(end)):
        raise ValueError("another field")
    return value[len(start) : len(value) - len(end)]


def _if_whole(content: bytes) -> bytes:
    """The last line, if it lacks nothing but its end."""
    last = content[content.rfind(b"\n") + 1 :]
    try:
        return last + b"\n" if isinstance(json.loads(last), dict) else b""
    except ValueError:
        return b""


def _slowly(content: bytes, path: Path, *, numbers: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """The same line by line: for NaN, which Python writes and JSON does not know, and to name a damaged line."""
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ProbeError(f"{path}, line {number}, is not JSON: {error}. Mend the line or leave it out.") from error
        if not isinstance(row, dict):
            raise ProbeError(
                f"{path}, line {number}, holds {type(row).__name__}, not an object. Mend the line or leave it out."
            )
        rows.append(row)
    columns = [[_number(row.get(name)) for row in rows] for name in numbers]
    encoded = {name: _encoded([_string(row.get(name)) for row in rows]) for name in texts}
    return _arrays(columns, numbers) | encoded


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _arrays(columns: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    return {name: np.array(column, np.float64) for name, column in zip(names, columns, strict=True)}


def _encoded(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode()
