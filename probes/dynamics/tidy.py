"""The table as rows: (run, step, tokens, task, metric, value, stderr) from and to CSV and Parquet, of any origin.

Column names of other tools are understood (`model`, `shots`); what a column does not say is taken from the names of run
and task. Fineline's own run directories and lm-eval's result files are read in `probes.dynamics.load`.
"""

from __future__ import annotations

import itertools
import lzma
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pretrain.errors import ProbeError
from probes.dynamics.table import CurveTable, RunFacts, TaskCurve
from probes.dynamics.tasks import chance_of, domain_of

if TYPE_CHECKING:
    import pandas

_OTHER_NAMES = {
    "model": "run",
    "model_label": "run",
    "shots": "num_fewshot",
    "fewshot": "num_fewshot",
    "score": "value",
    "std_err": "stderr",
    "se": "stderr",
    "n_params": "parameters",
    "params": "parameters",
}
MEAN_TASK = "mean"
"""Stands in records for the mean of a domain."""
_NEEDED = ("run", "task", "metric", "value")
_TEXT = ("run", "family", "task", "domain", "metric", "plan")
_NUMBERS = ("step", "tokens", "value", "stderr", "num_fewshot", "parameters", "total_tokens", "flops", "chance")
_OF_RUN = ("run", "family", "parameters", "total_tokens")
_REPEATED = (*_OF_RUN, "task", "domain", "metric", "num_fewshot", "chance", "plan")
_COLUMNS = (
    *(*_OF_RUN, "step", "tokens", "flops", "task", "domain", "metric", "num_fewshot"),
    *("value", "stderr", "chance", "rescaled", "plan"),
)
_COUNTS = ("step", "num_fewshot")
_SIZE = re.compile(r"(?:^|[-_ /])(\d+(?:\.\d+)?)\s*([kmbt])(?=$|[-_ /.])", re.IGNORECASE)
_POWERS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def read_tidy(
    path: Path,
    *,
    facts: Mapping[str, RunFacts] | None = None,
    tokens_per_step: float | Callable[[str], float | None] | None = None,
) -> CurveTable:
    """A CSV (plain, .gz, .xz, .zst) or Parquet file of one row per score.

    Args:
        path: needs the columns run (or model), task, metric, value, and step or tokens; knows stderr, num_fewshot (or
            shots), domain, family, parameters, total_tokens, flops, chance, plan. Means of domains, which have the
            task `mean`, are left out: they are no tasks, and can be made of the tasks.
        facts: of runs the file says less of.
        tokens_per_step: where the file has steps only; of all runs, or a function of the run's name.

    Raises:
        ProbeError: the file cannot be read, or columns are missing or hold text where numbers belong.
    """
    try:
        if path.name.endswith(".parquet"):
            table = pa.parquet.read_table(path)
        elif path.name.endswith(".xz"):
            with lzma.open(path) as file:
                table = pa.csv.read_csv(file)
        else:
            table = pa.csv.read_csv(path)
    except (OSError, pa.ArrowInvalid, lzma.LZMAError, EOFError) as error:
        raise ProbeError(f"{path} cannot be read as a table of scores: {error}") from error
    return from_arrow(table, source=str(path), facts=facts, tokens_per_step=tokens_per_step)


def from_arrow(
    table: pa.Table,
    *,
    source: str = "the table",
    facts: Mapping[str, RunFacts] | None = None,
    tokens_per_step: float | Callable[[str], float | None] | None = None,
) -> CurveTable:
    """The same from an Arrow table; `source` names it in errors."""
    columns = _columns(table, source)
    runs, tasks, metrics = (_codes(columns[name]) for name in ("run", "task", "metric"))
    _complete_positions(columns, runs, tokens_per_step, source)
    size = len(columns["value"])
    shots_R = np.nan_to_num(columns.get("num_fewshot", np.full(size, -1.0)), nan=-1.0).astype(np.int64)
    plans = _codes(columns["plan"]) if "plan" in columns else (np.zeros(size, np.int64), [""])
    is_mean_R = np.array([name == MEAN_TASK for name in tasks[1]], bool)[tasks[0]] if tasks[1] else np.zeros(0, bool)
    order_R, bounds = ordered_groups(
        [runs[0], tasks[0], metrics[0], shots_R, plans[0]],
        columns["tokens"],
        np.where(is_mean_R, np.nan, columns["value"]),
    )
    step_R = np.nan_to_num(columns["step"], nan=-1.0).astype(np.int64)[order_R]
    tokens_R, value_R = columns["tokens"][order_R], columns["value"][order_R]
    stderr_R = columns.get("stderr", np.full(size, np.nan))[order_R]
    curves = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        row, here = order_R[begin], slice(begin, end)
        task, metric = tasks[1][tasks[0][row]], metrics[1][metrics[0][row]]
        told = float(columns["chance"][row]) if "chance" in columns else np.nan
        curves.append(
            TaskCurve(
                run=runs[1][runs[0][row]],
                task=task,
                domain=(str(columns["domain"][row]) if "domain" in columns else "") or domain_of(task),
                metric=metric,
                num_fewshot=int(shots_R[row]),
                step_C=step_R[here],
                tokens_C=tokens_R[here],
                value_C=value_R[here],
                stderr_C=stderr_R[here],
                chance=told if np.isfinite(told) else chance_of(task, metric),
                plan=plans[1][plans[0][row]],
            )
        )
    return CurveTable(_facts(columns, runs, facts or {}), curves)


def ordered_groups(
    keys: Sequence[np.ndarray], tokens_R: np.ndarray, value_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of each curve by tokens: of R rows those with finite values, of equal tokens the last.

    Args:
        keys: int64 arrays of R; rows that agree in all are of one curve.
        tokens_R: tokens.
        value_R: values; a row without a finite one is left out.

    Returns:
        Indices of rows, one group after the other, and where among them each group begins, with their end.
    """
    kept_R = np.flatnonzero(np.isfinite(value_R) & np.isfinite(tokens_R))
    group_R = np.zeros(len(kept_R), np.int64)
    for key_R in keys:
        part_R = key_R[kept_R] - (key_R.min() if len(key_R) else 0)
        group_R = group_R * (part_R.max(initial=0) + 1) + part_R
    sorted_R = np.lexsort((tokens_R[kept_R], group_R))
    group_R, order_R = group_R[sorted_R], kept_R[sorted_R]
    is_other_R = group_R[1:] != group_R[:-1]
    is_last_R = np.append(is_other_R | (tokens_R[order_R[1:]] != tokens_R[order_R[:-1]]), True)[: len(order_R)]
    order_R, group_R = order_R[is_last_R], group_R[is_last_R]
    begins = np.flatnonzero(np.append(True, group_R[1:] != group_R[:-1])[: len(group_R)])
    return order_R, np.append(begins, len(order_R))


def to_arrow(table: CurveTable) -> pa.Table:
    """One row per score, with what `from_arrow` reads and flops, rescaled score and domain added."""
    parts: dict[str, list[Any]] = {name: [] for name in ("step", "tokens", "value", "stderr", "flops", "rescaled")}
    repeated: dict[str, list[Any]] = {name: [] for name in _REPEATED}
    counts = []
    for curve in table:
        facts = table.runs[curve.run]
        counts.append(len(curve))
        parts["step"].append(curve.step_C)
        parts["tokens"].append(curve.tokens_C)
        parts["value"].append(curve.value_C)
        parts["stderr"].append(curve.stderr_C)
        parts["flops"].append(facts.flops(curve.tokens_C))
        known = np.isfinite(curve.chance)
        parts["rescaled"].append(curve.rescaled().value_C if known else np.full(len(curve), np.nan))
        of_run = curve.run, facts.family, facts.parameters, facts.total_tokens
        of_task = curve.task, curve.domain, curve.metric, curve.num_fewshot, curve.chance, curve.plan
        for name, value in zip(_REPEATED, (*of_run, *of_task), strict=True):
            repeated[name].append(value)
    index = np.repeat(np.arange(len(counts)), counts)
    columns = {
        name: pa.array(values).dictionary_encode().take(pa.array(index))
        if name in _TEXT
        else pa.array(values).take(pa.array(index))
        for name, values in repeated.items()
    }
    columns |= {
        name: pa.array(np.concatenate(values) if values else [], from_pandas=True) for name, values in parts.items()
    }
    return pa.table(columns)


def to_pandas(table: CurveTable) -> pandas.DataFrame:
    """The same as a data frame of plain columns, in an order for people."""
    arrow = to_arrow(table)
    kind = {
        name: pa.string() if name in _TEXT else pa.int64() if name in _COUNTS else pa.float64() for name in _COLUMNS
    }
    return pa.table({name: arrow[name].cast(kind[name]) for name in _COLUMNS}).to_pandas()


def size_in(name: str) -> float | None:
    """Parameters as a run's name tells them (`pythia-1.4b`, `190M-5xC`); None if it does not."""
    match = _SIZE.search(name)
    return float(match[1]) * _POWERS[match[2].lower()] if match else None


def family_in(name: str) -> str:
    """The name without its size."""
    return re.sub(r"[-_ ]{2,}", "-", _SIZE.sub("-", name)).strip("-_ ")


def _complete_positions(
    columns: dict[str, Any],
    runs: tuple[np.ndarray, Sequence[str]],
    tokens_per_step: float | Callable[[str], float | None] | None,
    source: str,
) -> None:
    """Adds tokens from steps or steps from tokens, whichever is missing."""
    told = [tokens_per_step(name) if callable(tokens_per_step) else tokens_per_step for name in runs[1]]
    factors = np.array([np.nan if factor is None else factor for factor in told])
    if "tokens" not in columns:
        unknown = [name for name, factor in zip(runs[1], factors, strict=True) if not np.isfinite(factor)]
        if unknown:
            raise ProbeError(
                f"{source} has no column tokens. Add one, or say how many tokens a step of {unknown[0]} is: "
                f"--tokens-per-step, or the column tokens_per_step of --runs."
            )
        columns["tokens"] = columns["step"] * factors[runs[0]]
    if "step" not in columns:
        columns["step"] = np.round(columns["tokens"] / factors[runs[0]])


def _columns(table: pa.Table, source: str) -> dict[str, Any]:
    names = [_OTHER_NAMES.get(name.lower(), name.lower()) for name in table.column_names]
    table = table.rename_columns(names)
    missing = [name for name in _NEEDED if name not in names]
    if missing or not {"step", "tokens"} & set(names):
        wanted = missing + ([] if {"step", "tokens"} & set(names) else ["step or tokens"])
        raise ProbeError(
            f"{source} lacks the column(s) {', '.join(wanted)}; it has {', '.join(table.column_names)}. A table of "
            f"scores has one row per score: run, step, tokens, task, metric, value, and stderr where known."
        )
    columns: dict[str, Any] = {}
    for name in names:
        if name in _TEXT:
            columns[name] = table[name].combine_chunks().cast(pa.string()).fill_null("").dictionary_encode()
        elif name in _NUMBERS:
            try:
                columns[name] = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            except pa.ArrowInvalid as error:
                raise ProbeError(f"{source}, column {name}: {error}. Numbers are wanted there.") from error
    columns["domain"] = columns["domain"].to_numpy(zero_copy_only=False) if "domain" in columns else None
    if columns["domain"] is None:
        del columns["domain"]
    return columns


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    return column.indices.to_numpy().astype(np.int64), column.dictionary.to_pylist()


def _facts(
    columns: Mapping[str, Any], runs: tuple[np.ndarray, Sequence[str]], known: Mapping[str, RunFacts]
) -> list[RunFacts]:
    codes_R, names = runs
    first = {code: int(row) for code, row in zip(*np.unique(codes_R, return_index=True), strict=True)}
    found = []
    for code, name in enumerate(names):
        facts = known.get(name) or RunFacts(name=name, family=family_in(name), parameters=size_in(name))
        row = first[code]
        if "parameters" in columns and np.isfinite(columns["parameters"][row]):
            facts = replace(facts, parameters=float(columns["parameters"][row]))
        if "total_tokens" in columns and np.isfinite(columns["total_tokens"][row]):
            facts = replace(facts, total_tokens=float(columns["total_tokens"][row]))
        if "family" in columns:
            facts = replace(facts, family=str(columns["family"][row]))
        found.append(facts)
    return found
