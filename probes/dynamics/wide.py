"""Tables with a column for each score, turned into one row per score: exports of W&B, and tables written by hand.

Understood are W&B's history (`Step`, `_timestamp`, `piqa/acc`), its charts' export (`run - piqa/acc`, with `__MIN` and
`__MAX`), the names under which Fineline logs (`probe-commonsense/piqa/acc`, `validation/web/loss`), a column for each
metric beside a column task, and columns named after known tasks. Other columns are left out, which is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pretrain.errors import ProbeError
from pretrain.track.names import PROBE_TOKENS, parse_probe_name, parse_validation_name
from probes.dynamics.columns import NEEDED, NUMBERS, TEXT, listed, meaning, numbers, texts
from probes.dynamics.compressed import plain_name
from probes.dynamics.metrics import LOWER_IS_BETTER, SCORES
from probes.dynamics.read_table import Rows
from probes.dynamics.table import LOSS_DOMAIN
from probes.dynamics.tasks import chance_of, domain_of
from probes.dynamics.trailing import latest_before, trailing_mean

_METRICS = frozenset({*SCORES, *LOWER_IS_BETTER, "accuracy", "acc_mutual_info", "mcc", "bleu", "pass_at_1"})
_BY_LENGTH = sorted(_METRICS, key=len, reverse=True)
_OF_CHART = re.compile(r"^(?:Group: )?(?P<run>.+) - (?P<name>\S.*)$")
_ENDS_OF_RANGE = ("__MIN", "__MAX")
_SHOTS = re.compile(r"(?:^|[@_ -])(\d+)[-_ ]?shots?$", re.IGNORECASE)
_TRAINING = frozenset({"train", "training"})
_VALIDATION = frozenset({"val", "valid", "validation", "eval", "test", "dev"})
_LEARNING_RATES = frozenset({"lr", "learning_rate"})


@dataclass(frozen=True, slots=True)
class _Column:
    """What a column of scores measures."""

    name: str
    task: str
    metric: str
    domain: str = ""
    run: str = ""
    num_fewshot: int = -1
    is_stderr: bool = False
    is_probe: bool = False

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.run, self.domain, self.task, self.metric, self.num_fewshot


def as_long(rows: Rows, path: Path) -> Rows:
    """One row per score, of a table that is not so; any other is returned as it is.

    Raises:
        ProbeError: there are scores by column, but neither steps nor tokens.
    """
    known = {meaning(name)[0] for name in rows.table.column_names}
    if {"metric", "value"} <= known or ("task" in known and "value" in known):
        return rows
    columns, left_out = _score_columns(rows.table.column_names, with_task="task" in known)
    if not columns:
        return rows
    return _melted(rows, columns, left_out, run=_stem(path))


def _stem(path: Path) -> str:
    name = path.name[: len(plain_name(path.name))]
    return name.rpartition(".")[0]


def _score_columns(names: Sequence[str], *, with_task: bool) -> tuple[list[_Column], list[str]]:
    """Columns of scores, and those that are neither scores nor known otherwise."""
    found: list[_Column] = []
    left_out: list[str] = []
    for name in names:
        column = _of_metric(name) if with_task else _described(name)
        if column is not None:
            found.append(column)
        elif meaning(name)[0] not in (*TEXT, *NUMBERS) and name != PROBE_TOKENS:
            left_out.append(name)
    return found, left_out


def _of_metric(name: str) -> _Column | None:
    """A column of a table with a column task: the name is a metric, or that of its standard error."""
    plain = name.strip().removesuffix(",none")
    base = re.sub(r"[_ ]?(?:stderr|std_err|se)$", "", plain.replace("_stderr,none", "_stderr"))
    if base.partition(",")[0].lower() not in _METRICS:
        return None
    return _Column(name, task="", metric=base, is_stderr=base != plain)


def _described(name: str) -> _Column | None:
    """What a column's name says; None for one that names no score."""
    if name.endswith(_ENDS_OF_RANGE):
        return None
    chart = _OF_CHART.match(name)
    if chart is not None:
        inner = _described(chart["name"])
        return replace(inner, name=name, run=chart["run"]) if inner is not None else None
    probe = parse_probe_name(name)
    if probe is not None:
        task, shots = _without_shots(probe.task)
        return _Column(name, task, probe.metric, domain=probe.domain, num_fewshot=shots, is_probe=True)
    validation = parse_validation_name(name)
    if validation is not None:
        of_loss = _Column(name, f"validation/{validation[0]}", "loss", domain=LOSS_DOMAIN)
        return of_loss if validation[1] == "loss" else None  # the other is the same in another unit
    return _by_metric(name)


def _by_metric(name: str) -> _Column | None:
    parts = [part for part in re.split(r"[/:|]", name.strip().replace("_stderr,none", "_stderr")) if part]
    if not parts:
        return None
    last = parts[-1].removesuffix(",none")
    base = last.removesuffix("_stderr")
    if base.lower() in _LEARNING_RATES and (len(parts) == 1 or parts[-2].lower() in (*_TRAINING, "optim", "optimizer")):
        return _Column(name, "train", "learning_rate", domain=LOSS_DOMAIN)
    shots = next((int(match[1]) for part in parts[:-1] if (match := _SHOTS.search(part))), -1)
    if base.partition(",")[0].lower() in _METRICS:
        task, metric = parts[-2] if len(parts) > 1 else "", base
    else:
        metric = next(
            (one for one in _BY_LENGTH if re.search(rf"[^_ -][_ -]{re.escape(one)}$", base, re.IGNORECASE)), ""
        )
        task = base[: -len(metric) - 1] if metric else ""
    if metric.lower() == "loss" and (not task or task.lower() in (*_TRAINING, *_VALIDATION)):
        is_held_out = task.lower() in _VALIDATION
        return _Column(name, "validation" if is_held_out else "train", "loss", domain=LOSS_DOMAIN)
    if task.lower() in (*_TRAINING, *_VALIDATION):
        return None
    if not task and len(parts) == 1 and domain_of(last) != "other" and np.isfinite(chance_of(last, "acc")):
        return _Column(name, last.lower(), "acc")
    if not task:
        return None
    task, own = _without_shots(task) if "@" in task else (task, -1)
    return _Column(name, task, metric, num_fewshot=max(shots, own), is_stderr=base != last)


def _without_shots(task: str) -> tuple[str, int]:
    """`piqa@5shot` as task and number of examples."""
    plain, _, told = task.rpartition("@")
    match = re.fullmatch(r"(\d+)shot", told)
    return (plain, int(match[1])) if plain and match else (task, -1)


def _melted(rows: Rows, columns: Sequence[_Column], left_out: Sequence[str], *, run: str) -> Rows:
    table, source = rows.table, rows.source

    def read(name: str) -> np.ndarray:
        return numbers(table[name], name=meaning(name)[0], source=source, where=rows.where)[0]

    axes = _axes(table.column_names)
    if not axes:
        raise ProbeError(
            f"{source} has scores by column ({listed([one.name for one in columns])}), but neither steps nor tokens. "
            f"Export it with Step or tokens as the x axis, or add a column step or tokens."
        )
    axis = {name: read(column) * meaning(column)[1] for name, column in axes.items() if name != "checkpoint"}
    errors = {one.key: read(one.name) for one in columns if one.is_stderr}
    kept: list[tuple[_Column, np.ndarray, dict[str, np.ndarray]]] = []
    for one in columns:
        if one.is_stderr:
            continue
        value_R = read(one.name)
        row_L = np.flatnonzero(~np.isnan(value_R))
        stderr_R = errors.get(one.key, np.full(len(value_R), np.nan))
        kept.append((one, row_L, {"value": value_R[row_L], "stderr": stderr_R[row_L], **_places(one, axis, row_L)}))
    kept = _at_checkpoints(kept, axis, read)
    index_L = np.concatenate([row_L for _, row_L, _ in kept])
    each = np.repeat(np.arange(len(kept)), [len(row_L) for _, row_L, _ in kept])
    described = [one for one, _, _ in kept]

    def of_columns(values: Sequence[str | int]) -> pa.Array:
        return pa.array(values).take(pa.array(each))

    long = {
        name: pa.array(np.concatenate([arrays[name] for _, _, arrays in kept]), from_pandas=True) for name in kept[0][2]
    }
    own_task = next((name for name in table.column_names if meaning(name)[0] == "task"), None)
    own_run = next((name for name in table.column_names if meaning(name)[0] == "run"), None)
    by_row = pa.array(index_L)
    long["run"] = texts(table[own_run]).take(by_row) if own_run else of_columns([one.run or run for one in described])
    long["task"] = texts(table[own_task]).take(by_row) if own_task else of_columns([one.task for one in described])
    long["metric"] = of_columns([one.metric for one in described])
    domains = [one.domain or (domain_of(one.task) if one.task else "") for one in described]
    long["domain"] = of_columns(domains)
    for name in ("num_fewshot", *(other for other in (*TEXT, *NUMBERS) if other not in (*NEEDED, "num_fewshot"))):
        own = next((column for column in table.column_names if meaning(column)[0] == name), None)
        if own is not None and name not in long:
            long[own] = table[own].combine_chunks().take(by_row)
    if not any(meaning(name)[0] == "num_fewshot" for name in long):
        long["num_fewshot"] = of_columns([one.num_fewshot for one in described])
    names = [one.name for one in described]

    def where(row: int) -> str:
        return f"{rows.where(int(index_L[row]))}, column {names[each[row]]}"

    return Rows(pa.table(long), source, where, (*rows.notes, *_said(source, columns, left_out)))


def _axes(names: Sequence[str]) -> dict[str, str]:
    """Columns of steps and tokens by what they are."""
    found: dict[str, str] = {}
    for name in names:
        kind = "probe_tokens" if name == PROBE_TOKENS else meaning(name)[0]
        if kind in ("step", "tokens", "probe_tokens", "checkpoint") and (kind not in found or name == kind):
            found[kind] = name
    return found


def _places(one: _Column, axis: dict[str, np.ndarray], row_L: np.ndarray) -> dict[str, np.ndarray]:
    """Steps and tokens of the rows of a column. A score that Fineline logged late has the tokens of its checkpoint."""
    own = axis.get("probe_tokens") if one.is_probe or "tokens" not in axis else None
    if own is None:
        return {name: axis[name][row_L] for name in ("step", "tokens") if name in axis}
    tokens_L = own[row_L]
    if "step" not in axis:
        return {"tokens": tokens_L}
    if "tokens" not in axis:
        return {"step": axis["step"][row_L], "tokens": tokens_L}
    known_R = np.isfinite(axis["step"]) & np.isfinite(axis["tokens"])
    step_of = dict(zip(axis["tokens"][known_R].tolist(), axis["step"][known_R].tolist(), strict=True))
    return {"step": np.array([step_of.get(one, -1.0) for one in tokens_L.tolist()], float), "tokens": tokens_L}


def _at_checkpoints(
    kept: Sequence[tuple[_Column, np.ndarray, dict[str, np.ndarray]]],
    axis: dict[str, np.ndarray],
    read: Callable[[str], np.ndarray],
) -> list[tuple[_Column, np.ndarray, dict[str, np.ndarray]]]:
    """Training loss and learning rate, logged step by step, as they are known at the checkpoints of the scores.

    As for a run directory (`probes.dynamics.read_run`). Of several runs in one chart, or without scores, all rows stay.
    """
    scores = [arrays for one, _, arrays in kept if one.domain != LOSS_DOMAIN]
    if not scores or len({one.run for one, _, _ in kept}) > 1:
        return list(kept)
    by = "tokens" if "tokens" in scores[0] else "step"
    at_C, first_C = np.unique(np.concatenate([arrays[by] for arrays in scores]), return_index=True)
    found = []
    for one, row_L, arrays in kept:
        if one.task != "train" or by not in arrays:
            found.append((one, row_L, arrays))
            continue
        order_L = np.argsort(arrays[by], kind="stable")
        logged = arrays[by][order_L], arrays["value"][order_L]
        mean_C, stderr_C = trailing_mean(*logged, at_C)
        if one.metric == "learning_rate":
            mean_C, stderr_C = latest_before(*logged, at_C), np.full(len(at_C), np.nan)
        known_C = np.flatnonzero(np.isfinite(mean_C))
        at = {
            name: np.concatenate([other[name] for other in scores])[first_C][known_C]
            for name in arrays
            if name in scores[0]
        }
        place_C = np.clip(np.searchsorted(logged[0], at_C, side="right") - 1, 0, None)[known_C]
        found.append((one, row_L[order_L][place_C], at | {"value": mean_C[known_C], "stderr": stderr_C[known_C]}))
    return found


def _said(source: str, columns: Sequence[_Column], left_out: Sequence[str]) -> list[str]:
    """Which columns were taken and which were not."""
    taken = [one.name for one in columns]
    ends = [name for name in left_out if name.endswith(_ENDS_OF_RANGE)]
    others = [name for name in left_out if name not in ends and name]
    said = f"{source}: one score per column; taken are {listed(taken)}"
    if ends:
        said += f"; {len(ends)} columns {' and '.join(_ENDS_OF_RANGE)} are skipped"
    if others:
        said += f"; left out are {listed(others)}"
    guessed = [one.name for one in columns if one.metric == "acc" and not re.search("acc", one.name, re.IGNORECASE)]
    also = [f"{source}: {listed(guessed)}: no metric is named, so the scores are taken as acc."] if guessed else []
    return [f"{said}.", *also]
