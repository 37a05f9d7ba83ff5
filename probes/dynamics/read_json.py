"""Columns from files of JSON lines, fast: Arrow's reader, and Python's where a file is not as Arrow wants it.

A last line without its end was being written when the run was killed and is passed over; damage before it is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from pretrain.errors import ProbeError

_LARGEST_BLOCK_BYTES = 1 << 26


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
    content: bytes, path: Path, *, numbers: Sequence[str], texts: Sequence[str] = ()
) -> dict[str, pa.Array | np.ndarray]:
    """Fields of R objects, one a line; other fields are not looked at.

    Args:
        content: of the file.
        path: names it in errors.
        numbers: fields to read as float64 arrays of R; nan where a line has no number.
        texts: fields to read as Arrow dictionary arrays of R; null where a line has no text.

    Raises:
        ProbeError: a line before the last that is not a JSON object.
    """
    if not content or content.isspace():
        return _arrays([[] for _ in numbers], numbers) | {name: _encoded([]) for name in texts}
    whole = content if content.endswith(b"\n") else content[: content.rfind(b"\n") + 1] + _if_whole(content)
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
            raise ProbeError(f"{path}, line {number}, is not JSON: {error}. Remove the line.") from error
        if not isinstance(row, dict):
            raise ProbeError(f"{path}, line {number}, holds {type(row).__name__}, not an object. Remove the line.")
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
