"""Curves of one run directory: its probes, and its losses and learning rate at the probed checkpoints.

What is written where is known by `probes.report.run_files`; here it is read by columns, since a table may have hundreds
of runs. A run in progress is read as far as it has come; only `probes.jsonl` or `metrics.jsonl` is needed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.track import names
from probes.dynamics.metrics import is_accuracy
from probes.dynamics.read_json import columns_of, read_bytes
from probes.dynamics.table import LOSS_DOMAIN, RunFacts, Series, TaskCurve, make_curve
from probes.dynamics.tasks import chance_of
from probes.dynamics.tidy import MEAN_TASK, family_in, ordered_groups, size_in
from probes.dynamics.trailing import latest_before, trailing_mean
from probes.record import Measurement
from probes.report.run_files import RunFiles, read_config, read_events
from probes.store import PROBES_FILE

METRICS_FILE = "metrics.jsonl"
TRAIN_LOSS = Series("train", "loss")
LEARNING_RATE = Series("train", "learning_rate")

_VALIDATION = re.compile(rb'"(validation/[^"]+/loss)"')
_NUMBERS = ("step", "tokens", "flops", "num_fewshot", "value", "stderr")
_TEXTS = ("task", "domain", "metric", "plan_hash")
_ORDER = tuple(field.name for field in fields(Measurement))


def validation_loss(domain: str) -> Series:
    """The series of a validation domain's loss, in nats per token."""
    return Series(f"validation/{domain}", "loss")


@dataclass(frozen=True, slots=True)
class RunCurves:
    """What a run directory told.

    Attributes:
        facts: of the run.
        curves: of the run, under its name.
    """

    facts: RunFacts
    curves: list[TaskCurve]

    def named(self, name: str) -> RunCurves:
        """The same under another name."""
        return RunCurves(replace(self.facts, name=name), [replace(curve, run=name) for curve in self.curves])


def is_run_directory(path: Path) -> bool:
    """Whether a run, or what `python -m probes score … out=` wrote, lies there."""
    return (path / PROBES_FILE).is_file() or (path / METRICS_FILE).is_file()


def read_run_curves(directory: Path) -> RunCurves:
    """Reads a run as far as it has come.

    A step's later measurement replaces an earlier one; other plans are other curves. Means over domains are left out.
    Training loss is the mean over the last 5% of the tokens before a checkpoint, with the standard error of that mean;
    learning rate is the last one before it; validation losses are as measured.

    Raises:
        ProbeError: a line before the last of a file is damaged.
        ReportError: the configuration is not YAML.
    """
    has_config = (directory / "config.yaml").is_file()
    config = read_config(directory)[0] if has_config else {}
    files = RunFiles(
        directory=directory, config=config, config_text="", rows=(), curves=(), events=read_events(directory)
    )
    content = read_bytes(directory / PROBES_FILE)
    columns = columns_of(content, directory / PROBES_FILE, numbers=_NUMBERS, texts=_TEXTS, order=_ORDER)
    probes = list(_probe_curves(columns, run=files.name, chance=files.chance))
    known_R = np.isfinite(columns["tokens"])
    tokens_C, first_C = np.unique(columns["tokens"][known_R], return_index=True)
    losses = list(_loss_curves(directory, run=files.name, tokens_C=tokens_C, step_C=columns["step"][known_R][first_C]))
    return RunCurves(_facts(files, columns), probes + losses)


def _facts(files: RunFiles, columns: Mapping[str, Any]) -> RunFacts:
    spent_R, tokens_R = columns["flops"], columns["tokens"]
    latest = int(np.nanargmax(tokens_R)) if np.isfinite(tokens_R).any() else -1
    known = latest >= 0 and tokens_R[latest] > 0 and np.isfinite(spent_R[latest])
    each = float(spent_R[latest] / tokens_R[latest]) if known else None
    parameters, total_tokens = files.parameters, files.total_tokens
    return RunFacts(
        name=files.name,
        family=_family(files),
        parameters=float(parameters) if parameters else size_in(files.name),
        total_tokens=float(total_tokens) if total_tokens else None,
        flops_per_token=each or None,
        ramps_batch_size=bool(files.config.get("train", {}).get("batch_ramp")),
    )


def _family(files: RunFiles) -> str:
    """The name without its size; of a name that tells no size, what its data and tokenizer are."""
    if size_in(files.name) is not None or "data" not in files.config:
        return family_in(files.name)
    told = [files.config.get("data"), files.config.get("tokenizer")]
    return "data " + hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:6]


def _probe_curves(columns: Mapping[str, Any], *, run: str, chance: Mapping[str, float]) -> Iterator[TaskCurve]:
    codes = {name: columns[name].indices.fill_null(-1).to_numpy().astype(np.int64) for name in _TEXTS}
    told = {name: columns[name].dictionary.to_pylist() for name in _TEXTS}
    usable_R = (codes["task"] >= 0) & (codes["metric"] >= 0)
    if MEAN_TASK in told["task"]:
        usable_R &= codes["task"] != told["task"].index(MEAN_TASK)
    shots_R = np.nan_to_num(columns["num_fewshot"], nan=-1.0).astype(np.int64)
    keys = [codes["domain"], codes["task"], codes["metric"], shots_R, codes["plan_hash"]]
    order_R, bounds = ordered_groups(keys, columns["tokens"], np.where(usable_R, columns["value"], np.nan))
    step_R = np.nan_to_num(columns["step"], nan=-1.0).astype(np.int64)[order_R]
    tokens_R, value_R, stderr_R = (columns[name][order_R] for name in ("tokens", "value", "stderr"))
    for begin, end in itertools.pairwise(bounds.tolist()):
        row, here = order_R[begin], slice(begin, end)
        task, metric = told["task"][codes["task"][row]], told["metric"][codes["metric"][row]]
        domain, plan = (
            told[name][codes[name][row]] if codes[name][row] >= 0 else "" for name in ("domain", "plan_hash")
        )
        yield TaskCurve(
            run=run,
            task=task,
            domain=domain or "other",
            metric=metric,
            num_fewshot=int(shots_R[row]),
            step_C=step_R[here],
            tokens_C=tokens_R[here],
            value_C=value_R[here],
            stderr_C=stderr_R[here],
            chance=_chance(task, metric, chance),
            plan=plan,
        )


def _chance(task: str, metric: str, told: Mapping[str, float]) -> float:
    """As the plan counted the choices; with a single choice, as for a last word, guessing scores nothing.

    The plan leaves out tasks whose items have a single answer, which nobody guesses.
    """
    if not is_accuracy(metric) or task not in told:
        known = chance_of(task, metric)
        return 0.0 if told and is_accuracy(metric) and not np.isfinite(known) else known
    return float(told[task]) if told[task] < 1.0 else 0.0


def _loss_curves(directory: Path, *, run: str, tokens_C: np.ndarray, step_C: np.ndarray) -> Iterator[TaskCurve]:
    """Losses and learning rate; of a run that was not probed where validation was measured, or the last row."""
    path = directory / METRICS_FILE
    content = read_bytes(path)
    validation = sorted({found.decode() for found in _VALIDATION.findall(content)})
    wanted = ["step", "tokens", names.TRAIN_LOSS, names.TRAIN_LEARNING_RATE, *validation]
    columns = columns_of(content, path, numbers=wanted)
    order_R = np.argsort(columns["tokens"], kind="stable")
    order_R = order_R[np.isfinite(columns["tokens"][order_R]) & np.isfinite(columns["step"][order_R])]
    rows = {name: column[order_R] for name, column in columns.items()}
    if not len(order_R):
        return
    if not len(tokens_C):
        measured_R = np.isfinite([rows[name] for name in validation]).any(axis=0) if validation else np.zeros(0, bool)
        chosen_R = np.flatnonzero(measured_R) if measured_R.any() else np.array([len(order_R) - 1])
        tokens_C, step_C = rows["tokens"][chosen_R], rows["step"][chosen_R]
    mean_C, stderr_C = trailing_mean(rows["tokens"], rows[names.TRAIN_LOSS], tokens_C)
    rate_C = latest_before(rows["tokens"], rows[names.TRAIN_LEARNING_RATE], tokens_C)
    yield _loss_curve(TRAIN_LOSS, (step_C, tokens_C, mean_C, stderr_C), run=run)
    yield _loss_curve(LEARNING_RATE, (step_C, tokens_C, rate_C, np.full(len(rate_C), np.nan)), run=run)
    unknown_R = np.full(len(order_R), np.nan)
    for name in validation:
        parsed = names.parse_validation_name(name)
        if parsed is not None:
            measured = rows["step"], rows["tokens"], rows[name], unknown_R
            yield _loss_curve(validation_loss(parsed[0]), measured, run=run)


def _loss_curve(series: Series, columns: Sequence[np.ndarray], *, run: str) -> TaskCurve:
    """A curve of steps, tokens, values and errors, where the value is finite; of equal tokens the last."""
    step_R, tokens_R, value_R, stderr_R = columns
    return make_curve(step_R, tokens_R, value_R, stderr_R, run=run, series=series, domain=LOSS_DOMAIN)
