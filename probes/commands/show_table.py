"""Tables of the commands: read from the paths a command line names, printed as aligned text, written to a file.

No command of its own; `predict`, `compare`, `trust`, `fit` and `state` share it. What the rows hold is for them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.arguments import count_of, written_path
from pretrain.durable import replace_file
from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count

if TYPE_CHECKING:
    from probes.dynamics.table import CurveTable

_NOTHING = "–"
_SUFFIXES = (".csv", ".parquet", ".json")
_LARGE = 1e6
_HUGE = 1e16


_ROWS_OUTPUT = "also write the rows: .csv, .parquet or .json"


def add_table_arguments(parser: argparse.ArgumentParser, *, output: str = _ROWS_OUTPUT) -> None:
    """Adds what every command over a table of curves takes: where it is read from, where its rows are written.

    Args:
        parser: of the command.
        output: what `--output FILE` is, for its help.
    """
    parser.add_argument(
        "paths",
        nargs="+",
        type=written_path,
        metavar="PATH",
        help="run directories, folders of lm-eval results, CSV or Parquet files, published:pythia, "
        "published:pythia-deduped, published:pythia-interventions, published:pythia-batch-sizes, "
        "published:olmo-ladder, published:amber, published:openllama, published:finals",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    parser.add_argument(
        "--tokens-per-step",
        type=count_of("tokens"),
        metavar="N",
        help="tokens of a step, where records name steps only",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="a CSV of facts the records lack: run, parameters, total_tokens, tokens_per_step, family",
    )


def share(text: str) -> float:
    """A share of a run, for argparse: above 0 and below 1."""
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and below 1, such as 0.3")
    return value


def table_of(options: argparse.Namespace) -> CurveTable:
    """The table that the arguments of `add_table_arguments` name. Prints what is to be said of how it was read.

    Raises:
        ProbeError: a path that cannot be read, or runs that cannot be told apart.
    """
    table = loader(options)(options.paths)
    for note in table.notes:
        print(f"Note: {note}")
    return table


def loader(options: argparse.Namespace) -> Callable[[Sequence[str]], CurveTable]:
    """Reads paths with what the options tell of runs; further paths of a command are read with the same facts.

    Raises:
        ProbeError: the file of `--runs` cannot be read.
    """
    from probes.dynamics.load import load_curves, read_runs_file

    told = read_runs_file(options.runs) if options.runs is not None else None
    return partial(
        load_curves,
        tokens_per_step=options.tokens_per_step,
        facts=told.facts if told else None,
        tokens_per_step_of=told.tokens_per_step if told else None,
    )


def series_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """`task (metric)`, with the number of examples where the rows have the series at several numbers.

    Args:
        row: with `task`, `metric` and `shots`, which is None where it is not known.
        rows: all that are shown.
    """
    same = [other for other in rows if (other["task"], other["metric"]) == (row["task"], row["metric"])]
    shots = f", {row.get('shots')}-shot" if len({other.get("shots") for other in same}) > 1 else ""
    return f"{row['task']} ({row['metric']}{shots})"


def print_table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None) -> None:
    """Prints rows as `render_table` gives them."""
    print(render_table(rows, columns=columns))


def render_table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None) -> str:
    """Aligned plain text: a heading, a rule, a line per row; text to the left, numbers to the right.

    Numbers of a column share their decimals, from a million on they are legible counts (`1.4B`); what is None or not
    a number is a dash.

    Args:
        rows: a mapping each; a key that a row lacks is None.
        columns: keys to show, in order; all of them, in order of appearance, unless told.
    """
    shown = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    if not rows or not shown:
        return "No rows."
    texts = [_column([_plain(row.get(name)) for row in rows]) for name in shown]
    numeric = [_is_numeric([_plain(row.get(name)) for row in rows]) for name in shown]
    heads = [name.replace("_", " ") for name in shown]
    widths = [max(len(head), *map(len, column)) for head, column in zip(heads, texts, strict=True)]
    lines = [heads, ["-" * width for width in widths], *zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes all columns of all rows, unrounded; the file is replaced whole or left as it is.

    Args:
        rows: a mapping each; a key that a row lacks is empty.
        path: `.csv`, `.parquet` or `.json` (a list of objects; what is not finite becomes null).

    Raises:
        ProbeError: another suffix, or the file cannot be written.
    """
    if path.suffix not in _SUFFIXES:
        raise ProbeError(
            f"--output {path}: rows cannot be written as {path.suffix or 'a file without suffix'}. "
            f"Name a file that ends in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}."
        )
    names = list(dict.fromkeys(key for row in rows for key in row))
    whole = [{name: _plain(row.get(name)) for name in names} for row in rows]
    content = {".csv": _csv, ".parquet": _parquet, ".json": _json}[path.suffix](whole, names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise ProbeError(f"--output {path} cannot be written: {error}. Name another file.") from error


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


def _plain(value: Any) -> Any:
    """Numpy's scalars and arrays as Python's; None for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numeric(cells: Sequence[Any]) -> bool:
    present = [cell for cell in cells if cell is not None]
    return bool(present) and all(map(_is_number, present))


def _column(cells: Sequence[Any]) -> list[str]:
    """The cells of one column as text; its decimals suit its largest number: four significant digits, four at most."""
    small = [abs(cell) for cell in cells if isinstance(cell, float) and 0 < abs(cell) < _LARGE]
    decimals = min(4, max(0, 3 - math.floor(math.log10(max(small))))) if small else 0
    return [_text(cell, decimals) for cell in cells]


def _text(cell: Any, decimals: int) -> str:
    if cell is None:
        return _NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, list):
        return ", ".join(_text(one, decimals) for one in cell) or _NOTHING
    if not _is_number(cell):
        return " ".join(str(cell).split())
    if abs(cell) >= _LARGE:
        return legible_count(cell) if 0 < cell < _HUGE else f"{cell:.3g}"
    if isinstance(cell, int):
        return str(cell)
    rounded = f"{cell:.{decimals}f}"
    return f"{cell:.1e}" if cell and not float(rounded) else rounded
