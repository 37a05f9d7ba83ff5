"""What the columns of a table of scores mean: names that other tools use, units in names, percent signs and counts.

Values are only converted here, not judged: `probes.dynamics.valid_scores` says which are impossible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.errors import ConfigError, ProbeError
from pretrain.units import parse_count

NEEDED = ("run", "task", "metric", "value")
TEXT = ("run", "family", "task", "domain", "metric", "plan", "filter", "checkpoint")
COUNTS = ("step", "tokens", "parameters", "total_tokens")
NUMBERS = (*COUNTS, "value", "stderr", "num_fewshot", "flops", "chance", "choices")

_OTHER_NAMES = {
    "run": ("model", "model_label", "model_name", "run_name", "name"),
    "task": ("tasks", "task_name", "benchmark"),
    "metric": ("metric_name",),
    "value": ("score",),
    "stderr": ("std_err", "se", "standard_error"),
    "num_fewshot": ("shots", "fewshot", "n_shot", "nshot", "num_shots", "n_shots"),
    "step": ("_step", "global_step", "trainer/global_step", "train/global_step", "steps", "iteration", "iter"),
    "tokens": (
        *("num_tokens", "n_tokens", "tokens_seen", "seen_tokens", "train_tokens", "training_tokens"),
        *("consumed_tokens", "pretrain_tokens", "train/tokens", "throughput/total_tokens"),
    ),
    "parameters": ("n_params", "params", "num_parameters", "n_parameters"),
    "chance": ("random_baseline", "random_chance", "guessing"),
    "choices": ("num_choices", "n_choices"),
    "plan": ("plan_hash",),
    "checkpoint": ("revision", "ckpt"),
}
_CANONICAL = {other: name for name, others in _OTHER_NAMES.items() for other in others}
_UNIT = re.compile(r"^(?P<name>.+?)_(?:in_)?\(?(?P<unit>k|m|b|t|thousands?|millions?|billions?|trillions?)\)?$")
_UNIT_BEFORE = re.compile(r"^(?P<unit>thousand|million|billion|trillion)s?_(?:of_)?(?P<name>.+)$")
_POWERS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_INDEX = re.compile(r"(?:unnamed: \d+|index|__index_level_\d+__)?", re.IGNORECASE)
"""Row numbers that pandas writes."""
_WRITTEN_BY_US = frozenset({"rescaled", "suite", "num_items", "config_hash", "seconds"})


def meaning(name: str) -> tuple[str, float]:
    """What a column is called here, and what one of its units is worth: `Tokens (B)` is (`tokens`, 1e9)."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    known = _CANONICAL.get(plain, plain)
    if known in (*TEXT, *NUMBERS):
        return known, 1.0
    for pattern in (_UNIT, _UNIT_BEFORE):
        match = pattern.match(plain)
        if match and (counted := _CANONICAL.get(match["name"], match["name"])) in COUNTS:
            return counted, _POWERS[{"thousand": "k"}.get(match["unit"].rstrip("s"), match["unit"][0])]
    return plain, 1.0


def is_text(name: str) -> bool:
    """Whether a column holds text even where it looks like numbers, such as a run called 001."""
    return meaning(name)[0] in TEXT


def with_known_names(table: pa.Table) -> tuple[pa.Table, dict[str, float], list[str]]:
    """The columns that are known, under their names here.

    Returns:
        (table, worth of one of a column's units where it is not 1, columns that were left out). Of two columns that
        mean the same, such as run and model, the one with the name used here counts, else the first.
    """
    chosen: dict[str, str] = {}
    for name in table.column_names:
        known = meaning(name)[0]
        if known in (*TEXT, *NUMBERS) and (known not in chosen or name == known):
            chosen[known] = name
    worth = {known: meaning(name)[1] for known, name in chosen.items() if meaning(name)[1] != 1.0}
    ours = {name for name in table.column_names if name in _WRITTEN_BY_US or _INDEX.fullmatch(name)}
    left_out = [name for name in table.column_names if name not in chosen.values() and name not in ours]
    return pa.table({known: table[name] for known, name in chosen.items()}), worth, left_out


def texts(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, without blanks around; what is missing is empty."""
    return pc.utf8_trim_whitespace(column.combine_chunks().cast(pa.string()).fill_null(""))


def numbers(
    column: pa.ChunkedArray, *, name: str, source: str, where: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64, nan where a cell is empty, and which cells have a percent sign.

    Counts may be written as `1.4B` or `4_000_000`.

    Raises:
        ProbeError: a cell holds text that is no number; names the row.
    """
    whole = column.combine_chunks()
    try:
        found: np.ndarray = whole.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return found, np.zeros(len(found), bool)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cells = [str(cell).strip() if cell is not None else "" for cell in whole.to_pylist()]
    values, percent = np.full(len(cells), np.nan), np.zeros(len(cells), bool)
    for row, cell in enumerate(cells):
        number = _number(cell.removesuffix("%").strip(), name)
        if number is None:
            comma = " Decimal commas are understood where columns are separated by semicolons or tabs."
            raise ProbeError(
                f"{source}, {where(row)}: {name}={cell!r} is not a number. Numbers are wanted in the column {name}."
                f"{comma if re.fullmatch(r'-?[0-9]*,[0-9]+', cell) else ''}"
            )
        values[row], percent[row] = number, cell.endswith("%")
    return values, percent


def _number(cell: str, name: str) -> float | None:
    if not cell or cell.lower() in ("nan", "none", "na", "n/a", "null", "-", "–", "—"):
        return np.nan
    try:
        return float(cell)
    except ValueError:
        if name not in COUNTS:
            return None
    try:
        return float(parse_count(cell, unit="steps" if name == "step" else "tokens"))
    except ConfigError:
        return None


def with_errors_beside(table: pa.Table) -> tuple[pa.Table, list[int]]:
    """A table whose rows of the metric `acc_stderr` are the standard errors of the rows of `acc`.

    Args:
        table: with known names.

    Returns:
        The table without the former rows, and which of its rows each row was.
    """
    metrics = texts(table["metric"]).to_pylist()
    scores = [row for row, name in enumerate(metrics) if "_stderr" not in name]
    if len(scores) == len(metrics):
        return table, scores
    others = [name for name in table.column_names if name not in ("metric", "value", "stderr", "chance", "domain")]
    place = list(zip(*(table[name].to_pylist() for name in others), strict=True))
    error_of = {
        (place[row], name.replace("_stderr", "")): table["value"][row].as_py()
        for row, name in enumerate(metrics)
        if "_stderr" in name
    }
    told = table["stderr"].to_pylist() if "stderr" in table.column_names else [None] * len(table)
    errors = [error_of.get((place[row], metrics[row]), told[row]) for row in scores]
    kept = table.take(pa.array(scores)).select([name for name in table.column_names if name != "stderr"])
    return kept.append_column("stderr", pa.array(errors, from_pandas=True)), scores


def codes(column: Any) -> tuple[np.ndarray, list[str]]:
    """Text as whole numbers, and what each stands for."""
    encoded = column.dictionary_encode() if not isinstance(column, pa.DictionaryArray) else column
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def listed(names: Sequence[str], *, most: int = 6) -> str:
    """Names for a message, the first of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
