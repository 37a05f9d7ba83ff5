"""A result as a file: its rows as CSV, Parquet or JSON, or its figure as PNG or SVG, chosen by the name's ending.

Rows are written unrounded. A figure is drawn only when it is asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.durable import replace_file
from pretrain.errors import ProbeError
from probes.curves.text_table import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_ENDINGS = (".csv", ".parquet", ".json")
FIGURE_ENDINGS = (".png", ".svg")


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, *, figure: Callable[[], Figure] | None = None) -> None:
    """Writes all columns of all rows, unrounded, or the figure; the file is replaced whole or left as it is.

    Args:
        rows: a mapping each; a key that a row lacks is empty.
        path: `.csv`, `.parquet` or `.json` (a list of objects; what is not finite becomes null); `.png` or `.svg`
            where there is a figure.
        figure: draws the figure; None where the rows have none.

    Raises:
        ProbeError: another ending, or the file cannot be written.
    """
    endings = ROW_ENDINGS if figure is None else ROW_ENDINGS + FIGURE_ENDINGS
    if path.suffix not in endings:
        raise ProbeError(
            f"--output {path}: {'rows' if figure is None else 'the result'} cannot be written as "
            f"{path.suffix or 'a file without suffix'}. Name a file that ends in {either(endings)}."
        )
    if figure is not None and path.suffix in FIGURE_ENDINGS:
        from probes.curves.draw.canvas import as_png, as_svg

        content = (as_png if path.suffix == ".png" else as_svg)(figure())
    else:
        names = list(dict.fromkeys(key for row in rows for key in row))
        whole = [{name: plain(row.get(name)) for name in names} for row in rows]
        content = {".csv": _csv, ".parquet": _parquet, ".json": _json}[path.suffix](whole, names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise ProbeError(f"--output {path} cannot be written: {error}. Name another file.") from error


def either(endings: Sequence[str]) -> str:
    """`.csv, .parquet or .json`, for people."""
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row.values()])
    return text.getvalue().encode()


def _json(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    return ("[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n").encode()


def _parquet(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {}
    for name in names:
        cells = [row[name] for row in rows]
        try:
            columns[name] = pa.array(cells)
        except pa.ArrowInvalid:  # a column of several kinds
            columns[name] = pa.array([None if cell is None else str(cell) for cell in cells])
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
