"""Rows as aligned plain text: what the commands print, and what a result shows of itself.

What the rows hold is for those that make them; files of rows are `probes.curves.files`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.track.legible import legible_count

_NOTHING = "–"
_LARGE = 1e6
_HUGE = 1e16


def series_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """`task (metric)`, with the number of examples where the rows have the series at several numbers.

    Args:
        row: with `task`, `metric` and `shots`, which is None where it is not known.
        rows: all that are shown.
    """
    same = [other for other in rows if (other["task"], other["metric"]) == (row["task"], row["metric"])]
    shots = f", {row.get('shots')}-shot" if len({other.get("shots") for other in same}) > 1 else ""
    return f"{row['task']} ({row['metric']}{shots})"


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
    texts = [_column([plain(row.get(name)) for row in rows]) for name in shown]
    numeric = [_is_numeric([plain(row.get(name)) for row in rows]) for name in shown]
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


def plain(value: Any) -> Any:
    """Numpy's scalars and arrays as Python's; None for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
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
