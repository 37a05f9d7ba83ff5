"""The table as rows: (run, step, tokens, task, metric, value, stderr) from and to CSV and Parquet, of any origin.

What files hold is read by `probes.dynamics.read_table`, what columns mean is in `probes.dynamics.columns`; what they do
not say is taken from the names of run and task. Fineline's own run directories and lm-eval's result files are read in
`probes.dynamics.load`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.errors import ProbeError
from probes.dynamics import valid_scores
from probes.dynamics.checkpoint_names import place_in
from probes.dynamics.columns import (
    COUNTS,
    NEEDED,
    NUMBERS,
    TEXT,
    codes,
    listed,
    numbers,
    texts,
    with_errors_beside,
    with_known_names,
)
from probes.dynamics.metrics import is_lower_better, is_score
from probes.dynamics.positions import TokensPerStep, complete_positions
from probes.dynamics.read_table import Rows, read_rows
from probes.dynamics.table import CurveTable, RunFacts, TaskCurve
from probes.dynamics.tasks import chance_of, domain_of
from probes.dynamics.told_chance import chance_told
from probes.dynamics.wide import as_long

if TYPE_CHECKING:
    import pandas

MEAN_TASK = "mean"
"""Stands in records for the mean of a domain."""
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
    path: Path, *, facts: Mapping[str, RunFacts] | None = None, tokens_per_step: TokensPerStep = None
) -> CurveTable:
    """A table of `probes.dynamics.read_table`: one row per score, or a column per score as W&B exports.

    Args:
        path: needs the columns run (or model), task, metric, value, and step or tokens; knows stderr, num_fewshot (or
            shots), domain, family, parameters, total_tokens, flops, chance (or choices, their number), plan, and what
            `probes.dynamics.columns` lists. Means of domains, which have the task `mean`, are left out: they are no
            tasks, and can be made of the tasks.
        facts: of runs the file says less of.
        tokens_per_step: where the file has steps only; of all runs, or a function of the run's name.

    Returns:
        The table, whose `notes` say what was converted or left out.

    Raises:
        ProbeError: the file cannot be read, columns are missing or hold text where numbers belong, a score is
            impossible, or two rows differ about one.
    """
    return _from_rows(as_long(read_rows(path), path), facts=facts or {}, tokens_per_step=tokens_per_step)


def from_arrow(
    table: pa.Table,
    *,
    source: str = "the table",
    facts: Mapping[str, RunFacts] | None = None,
    tokens_per_step: TokensPerStep = None,
) -> CurveTable:
    """The same from an Arrow table; `source` names it in errors."""
    if not len(table):
        raise ProbeError(f"{source} has no rows.")
    rows = as_long(Rows(table, source, lambda row: f"row {row + 1}"), Path(source))
    return _from_rows(rows, facts=facts or {}, tokens_per_step=tokens_per_step)


def _from_rows(rows: Rows, *, facts: Mapping[str, RunFacts], tokens_per_step: TokensPerStep) -> CurveTable:
    rows, worth = _with_known_columns(rows)
    columns, percent_R = _columns(rows, worth)
    notes = [*rows.notes, *complete_positions(columns, tokens_per_step, rows)]
    runs, tasks, metrics = (codes(columns[name]) for name in ("run", "task", "metric"))
    size = len(columns["value"])
    shots_R = np.nan_to_num(columns.get("num_fewshot", np.full(size, -1.0)), nan=-1.0).astype(np.int64)
    plans = codes(columns["plan"]) if "plan" in columns else (np.zeros(size, np.int64), [""])
    keys = [runs[0], tasks[0], metrics[0], shots_R, plans[0]]
    scores = _scores(rows, columns, percent_R)
    notes += valid_scores.checked(scores)
    is_mean_R = np.array([name == MEAN_TASK for name in tasks[1]], bool)[tasks[0]]
    domains = codes(columns["domain"])[0] if "domain" in columns else np.zeros(size, np.int64)
    notes += valid_scores.refuse_conflicts(scores, [*keys, np.where(is_mean_R, domains, 0)])
    order_R, bounds = ordered_groups(keys, columns["tokens"], np.where(is_mean_R, np.nan, columns["value"]))
    if not len(order_R):
        raise ProbeError(
            f"{rows.source} has no scores of tasks at known tokens: all {size} rows are means of domains (task "
            f"{MEAN_TASK}), or lack a value or tokens."
        )
    step_R = np.nan_to_num(columns["step"], nan=-1.0).astype(np.int64)[order_R]
    tokens_R, value_R = columns["tokens"][order_R], columns["value"][order_R]
    stderr_R = columns["stderr"][order_R]
    told_domain = columns["domain"].to_pylist() if "domain" in columns else [""] * size
    curves = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        row, here = order_R[begin], slice(begin, end)
        task, metric = tasks[1][tasks[0][row]], metrics[1][metrics[0][row]]
        told = float(columns["chance"][row]) if not is_lower_better(metric) else np.nan
        curves.append(
            TaskCurve(
                run=runs[1][runs[0][row]],
                task=task,
                domain=told_domain[row] or domain_of(task),
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
    return CurveTable(_facts(columns, facts, rows), curves, notes=notes)


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
        if name in TEXT
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
    kind = {name: pa.string() if name in TEXT else pa.int64() if name in _COUNTS else pa.float64() for name in _COLUMNS}
    return pa.table({name: arrow[name].cast(kind[name]) for name in _COLUMNS}).to_pandas()


def size_in(name: str) -> float | None:
    """Parameters as a run's name tells them (`pythia-1.4b`, `190M-5xC`); None if it does not."""
    match = _SIZE.search(name)
    return float(match[1]) * _POWERS[match[2].lower()] if match else None


def family_in(name: str) -> str:
    """The name without its size."""
    return re.sub(r"[-_ ]{2,}", "-", _SIZE.sub("-", name)).strip("-_ ")


def _with_known_columns(rows: Rows) -> tuple[Rows, dict[str, float]]:
    """The rows with known columns under their names here, and what one of a column's units is worth.

    Raises:
        ProbeError: a column that is needed is missing.
    """
    table, worth, left_out = with_known_names(rows.table)
    missing = [name for name in NEEDED if name not in table.column_names]
    has_place = bool({"step", "tokens", "checkpoint"} & set(table.column_names))
    if not has_place and "run" in table.column_names:
        has_place = any(place_in([name]) is not None for name in set(texts(table["run"]).to_pylist()))
    if missing or not has_place:
        wanted = missing + ([] if has_place else ["step or tokens"])
        raise ProbeError(
            f"{rows.source} lacks the column(s) {', '.join(wanted)}; it has {', '.join(rows.table.column_names)}. A "
            f"table of scores has one row per score: run, step, tokens, task, metric, value, and stderr where known."
        )
    table, kept = with_errors_beside(table)
    notes = [f"{rows.source}: the columns {listed(left_out)} are not known and are left out."] if left_out else []
    return Rows(table, rows.source, lambda row: rows.where(kept[row]), (*rows.notes, *notes)), worth


def _columns(rows: Rows, worth: Mapping[str, float]) -> tuple[dict[str, Any], np.ndarray]:
    """The columns as arrays, and which values have a percent sign.

    Raises:
        ProbeError: a column holds text where numbers belong, or what can be no count.
    """
    table = rows.table
    columns: dict[str, Any] = {name: texts(table[name]) for name in TEXT if name in table.column_names}
    percent_R = np.zeros(len(table), bool)
    for name in NUMBERS:
        if name in table.column_names:
            column_R, signed_R = numbers(table[name], name=name, source=rows.source, where=rows.where)
            columns[name] = np.array(column_R) * worth.get(name, 1.0)
            percent_R |= signed_R if name == "value" else False
    columns.setdefault("stderr", np.full(len(table), np.nan))
    for name in COUNTS:
        if name in columns:
            valid_scores.refuse_bad_positions(columns[name], name=name, source=rows.source, where=rows.where)
    _refuse_swapped(columns, rows)
    columns["metric"] = _metrics(columns)
    columns["chance"] = chance_told(columns, source=rows.source, where=rows.where)
    return columns, percent_R


def _refuse_swapped(columns: Mapping[str, Any], rows: Rows) -> None:
    """Refuses task names in the column metric, and tokens in the column step."""
    tasks, metrics = (set(columns[name].to_pylist()) for name in ("task", "metric"))
    if all(is_score(name) for name in tasks) and not any(is_score(name) for name in metrics):
        raise ProbeError(
            f"{rows.source}: the column task holds {listed(sorted(tasks))}, which are metrics, and the column metric "
            f"holds {listed(sorted(metrics))}. Name the columns the other way round."
        )
    if {"step", "tokens"} <= columns.keys():
        fewer = np.flatnonzero(columns["tokens"] < columns["step"])
        if len(fewer):
            row = int(fewer[0])
            raise ProbeError(
                f"{rows.source}, {rows.where(row)}: tokens={columns['tokens'][row]:.6g} are fewer than "
                f"step={columns['step'][row]:.6g}. A step has at least one token. Are the columns swapped, or are "
                "tokens in billions? Name the column tokens_B then."
            )


def _metrics(columns: dict[str, Any]) -> pa.Array:
    """Metrics without lm-eval's filter `none`; other filters stay in the name, as `exact_match,strict-match`."""
    named = pc.replace_substring_regex(columns["metric"], r",none$", "")
    named = pc.if_else(pc.equal(named, "accuracy"), "acc", named)
    if "filter" not in columns:
        return named
    told = columns.pop("filter")
    has_own = pc.or_(pc.match_substring(named, ","), pc.is_in(told, pa.array(["", "none"])))
    return pc.if_else(has_own, named, pc.binary_join_element_wise(named, told, ","))


def _scores(rows: Rows, columns: Mapping[str, Any], percent_R: np.ndarray) -> valid_scores.Scores:
    run, task, metric = (columns[name].to_pylist() for name in ("run", "task", "metric"))
    shots = columns.get("num_fewshot", np.full(len(run), -1.0))
    named = [
        f"{one} ({of}{f', {count:.0f}-shot' if count >= 0 else ''})"
        for one, of, count in zip(task, metric, shots, strict=True)
    ]
    return valid_scores.Scores(
        source=rows.source,
        where=rows.where,
        run_R=run,
        unit_R=run,
        name_R=named,
        metric_R=metric,
        position=("tokens", columns["tokens"]),
        value_R=columns["value"],
        stderr_R=columns["stderr"],
        percent_R=percent_R,
    )


def _facts(columns: Mapping[str, Any], known: Mapping[str, RunFacts], rows: Rows) -> list[RunFacts]:
    """What is known of each run: what its rows say, else what is told of it, else its name.

    Raises:
        ProbeError: rows of one run differ.
    """
    run_R, names = codes(columns["run"])
    found = []
    for code, name in enumerate(names):
        facts = known.get(name) or RunFacts(name=name, family=family_in(name), parameters=size_in(name))
        own = np.flatnonzero(run_R == code)
        for field in ("parameters", "total_tokens"):
            if field not in columns:
                continue
            told = own[np.isfinite(columns[field][own])]
            other = told[columns[field][told] != columns[field][told[:1]]] if len(told) else told
            if len(other):
                one, two = (f"{columns[field][row]:.6g} in {rows.where(int(row))}" for row in (told[0], other[0]))
                raise ProbeError(
                    f"{rows.source}: {field} of {name} is {one} and {two}. It belongs to the whole run: write one."
                )
            if len(told):
                value = float(columns[field][told[0]])
                is_size = field == "parameters"
                facts = replace(facts, parameters=value) if is_size else replace(facts, total_tokens=value)
        if "family" in columns and (family := columns["family"][int(own[0])].as_py()):
            facts = replace(facts, family=family)
        found.append(facts)
    return found
