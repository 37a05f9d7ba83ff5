"""Which series of a run are judged at all, and why the others are not.

A task is judged once it has left chance, and then for good: whether it has is decided from the checkpoints before the
latest one, up to the task's best, so that a fall to chance cannot make it look like a task that was always guessed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.dynamics.chance import at_chance
from probes.dynamics.metrics import EARLIEST_FIRST, plain
from probes.dynamics.noise import judged_value
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve
from probes.dynamics.tidy import MEAN_TASK
from probes.dynamics.trust import TrustRule, is_ability

_MEAN_OF = 3
"""Checkpoints whose mean is a task's best."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is judged of a run.

    Attributes:
        series: one for each task that has left chance, then the losses.
        left_out: the series of each other task or loss, with the reason why it is not judged.
    """

    series: list[Series]
    left_out: dict[Series, str]


def watched(table: CurveTable, run: str, references: Sequence[str]) -> list[Series]:
    """One series for each task that has left chance, by a metric of the references where they have one; and losses."""
    return list(watch_list(table, run, references).series)


def watch_list(table: CurveTable, run: str, references: Sequence[str]) -> Watched:
    """What is judged of a run, and why the rest is not.

    Args:
        table: what is known now.
        run: the run.
        references: runs it is held against; those that the table does not hold are not asked.
    """
    known = [name for name in references if name in table.runs]
    by_task: dict[tuple[str, int], Series] = {}
    losses = []

    def rank(one: Series) -> tuple[bool, int]:
        return bool(known) and all(table.get(name, one) is None for name in known), _rank(one)

    for curve in table.of_run(run):
        one = curve.series
        if is_loss(curve):
            losses.append(one)
        elif plain(one.metric) in EARLIEST_FIRST and curve.task != MEAN_TASK and is_ability(curve):
            held = by_task.get((one.task, one.num_fewshot))
            if held is None or rank(one) < rank(held):
                by_task[one.task, one.num_fewshot] = one
    guessed = at_chance(until_the_best(table, run), list(by_task.values()), references=known, run=run)
    left_out = {one: f"{reason.removesuffix('.')} ({_count(table, run, one)})" for one, reason in guessed.items()}
    return Watched([*(one for one in by_task.values() if one not in guessed), *losses], left_out)


def is_loss(curve: TaskCurve) -> bool:
    """Whether a curve is a language-modelling loss: held-out text or training."""
    return curve.domain == LOSS_DOMAIN and curve.lower_is_better


def until_the_best(table: CurveTable, run: str) -> CurveTable:
    """The table with each curve of a run cut after its best mean of three, the latest checkpoint left out."""
    return CurveTable(
        table.runs.values(), [_cut(curve, table) if curve.run == run else curve for curve in table.curves]
    )


def why_nothing(table: CurveTable, run: str, left_out: Mapping[Series, str]) -> str:
    """Why nothing of a run (or of some of its series) is judged, in words: the cause of each group of series.

    Args:
        table: what is known now.
        run: the run.
        left_out: the reason of each series.
    """
    causes: dict[str, list[str]] = defaultdict(list)
    for one, reason in left_out.items():
        if one.task not in causes[reason]:
            causes[reason].append(one.task)
    if causes:
        return "; ".join(f"{_some(tasks)}: {reason}" for reason, tasks in causes.items())
    metrics = sorted({curve.metric for curve in table.of_run(run)})
    if not metrics:
        return "nothing has been measured yet"
    measured = ", ".join(metrics[:5])
    return f"no task and no loss was measured by a metric that is judged (measured: {measured})"


def _rank(series: Series) -> int:
    return EARLIEST_FIRST.index(plain(series.metric))


def _count(table: CurveTable, run: str, series: Series) -> str:
    curve = table.get(run, series)
    count = 0 if curve is None else len(curve)
    return f"{count} checkpoint{'' if count == 1 else 's'} measured"


def _some(tasks: Sequence[str]) -> str:
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return ", ".join(tasks[:3]) + more


def _cut(curve: TaskCurve, table: CurveTable) -> TaskCurve:
    # A test against chance needs some checkpoints at least, wherever the best of them is.
    fewest = TrustRule().checkpoints + int((curve.step_C < curve.first_steps(table.runs[curve.run].total_tokens)).sum())
    past_C = judged_value(curve)[:-1]
    if len(past_C) < max(fewest, _MEAN_OF):
        return curve
    mean_W = np.lib.stride_tricks.sliding_window_view(past_C, _MEAN_OF).mean(axis=1)
    stop = max(int(np.argmax(mean_W)) + _MEAN_OF, fewest)
    return curve.where(np.arange(len(curve)) < stop)
