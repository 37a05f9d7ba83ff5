"""Measurements as curves: one per task, metric, shots and plan, each with its first-to-last change.

Separate from reading and drawing so that table and figures say the same. A step measured twice (a resume
probes again) counts once, the later row. No fits here: see `probes.dynamics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEAN_TASK = "mean"

METRIC_TITLES = {
    "acc": "Accuracy",
    "acc_norm": "Accuracy, normalised by length",
    "gold_bpb": "Bits per byte of the right answer",
    "correct_prob": "Probability of the right answer",
    "norm_correct_prob": "Share of the right answer among the choices",
    "margin": "Margin of the right answer",
    "norm_margin": "Margin of the right answer's share",
    "exact_match": "Exact match",
    "ppl_acc": "Accuracy by perplexity of the whole text",
    "acc_rescaled": "Accuracy, 0 at chance",
    "acc_norm_rescaled": "Accuracy, normalised by length, 0 at chance",
    "perplexity": "Perplexity",
    "ppl_gold": "Loss on prompt and right answer",
    "soft_log": "Logarithm of the right answer's share",
    "total_prob": "Probability of all choices together",
}
_RECORD_ONLY_SUFFIXES = ("_per_token", "_per_char", "_per_byte")
_TABLE_ONLY = frozenset(
    {"margin", "norm_margin", "soft_log", "total_prob", "acc_rescaled", "acc_norm_rescaled", "ppl_gold"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A value at a position of the run; `stderr` is None where unknown."""

    step: int
    tokens: int
    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """From the first to the last value.

    Attributes:
        difference: last minus first.
        stderr: standard error of the difference, taking both as independent. They share their items, so the
            true one is smaller and `in_stderr` understates. None where either is unknown.
        in_stderr: the difference in units of `stderr`.
    """

    difference: float
    stderr: float | None
    in_stderr: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric of one task over the run.

    Attributes:
        domain: domain of the task.
        task: task; `mean` for the domain's mean over its tasks.
        metric: name of the metric.
        label: the task, with shots or plan where the run has several.
        num_items: items scored at the last point.
        points: by tokens, at least one.
    """

    domain: str
    task: str
    metric: str
    label: str
    num_items: int | None
    points: Sequence[Point]

    @property
    def change(self) -> Change:
        """What happened between the first and the last point."""
        first, last = self.points[0], self.points[-1]
        stderr = None
        if first.stderr is not None and last.stderr is not None:
            stderr = math.hypot(first.stderr, last.stderr)
        difference = last.value - first.value
        return Change(difference=difference, stderr=stderr, in_stderr=difference / stderr if stderr else None)


def curves_of(rows: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Groups rows of `probes.jsonl`; adds each domain's mean where the record has none.

    Rows without a finite value or without a task, and metrics that are not shown, are left out. Domains keep the
    order of first appearance; in each, the mean comes first.
    """
    groups: dict[tuple[str, str, str, Any, Any], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if _usable(row) and is_shown(row["metric"]):
            key = (row["domain"], row["task"], row["metric"], row.get("num_fewshot"), row.get("plan_hash"))
            groups.setdefault(key, {})[row["step"]] = row
    variants: dict[tuple[str, str, str], list[tuple[Any, Any]]] = {}
    for domain, task, metric, shots, plan in groups:
        variants.setdefault((domain, task, metric), []).append((shots, plan))
    curves = []
    for (domain, task, metric, shots, plan), by_step in groups.items():
        ordered = sorted(by_step.values(), key=lambda row: (row["tokens"], row["step"]))
        items = ordered[-1].get("num_items")
        curves.append(
            Curve(
                domain=domain,
                task=task,
                metric=metric,
                label=_label(task, shots, plan, variants[(domain, task, metric)]),
                num_items=items if isinstance(items, int) else None,
                points=[_point(row) for row in ordered],
            )
        )
    curves += _missing_means(curves)
    order = list(dict.fromkeys(curve.domain for curve in curves))
    return sorted(curves, key=lambda curve: (order.index(curve.domain), curve.task != MEAN_TASK))


def is_shown(metric: str) -> bool:
    """Whether a report shows the metric; variants by length stay in the record, for analysis."""
    return not metric.endswith(_RECORD_ONLY_SUFFIXES)


def leading_metrics(curves: Sequence[Curve]) -> list[str]:
    """The metrics that figures and the terminal show, the best known first; the page's table has the others too."""
    present = dict.fromkeys(curve.metric for curve in curves)
    left_out = _TABLE_ONLY | ({"correct_prob"} if "norm_correct_prob" in present else set())
    known = list(METRIC_TITLES)
    chosen = [metric for metric in present if metric not in left_out] or list(present)
    return sorted(chosen, key=lambda metric: known.index(metric) if metric in known else len(known))


def chance_of(curves: Sequence[Curve], chance: Mapping[str, float]) -> float | None:
    """Mean score of guessing over the tasks of these curves; None unless known for all."""
    tasks = {curve.task for curve in curves if curve.task != MEAN_TASK}
    if not tasks or not tasks <= chance.keys():
        return None
    return sum(chance[task] for task in tasks) / len(tasks)


def _missing_means(curves: Sequence[Curve]) -> list[Curve]:
    """Unweighted means, at the steps where all tasks of the domain have a value."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.domain, curve.metric), []).append(curve)
    means = []
    for (domain, metric), members in groups.items():
        if len(members) < 2 or any(curve.task == MEAN_TASK for curve in members):
            continue
        shared = set.intersection(*({point.step for point in curve.points} for curve in members))
        columns = zip(*([p for p in curve.points if p.step in shared] for curve in members), strict=True)
        points = [_mean_point(list(column)) for column in columns]
        if points:
            means.append(
                Curve(domain=domain, task=MEAN_TASK, metric=metric, label=MEAN_TASK, num_items=None, points=points)
            )
    return means


def _mean_point(points: list[Point]) -> Point:
    errors = [point.stderr for point in points if point.stderr is not None]
    known = len(errors) == len(points)
    return Point(
        step=points[0].step,
        tokens=points[0].tokens,
        value=sum(point.value for point in points) / len(points),
        stderr=math.hypot(*errors) / len(points) if known else None,
    )


def _usable(row: Mapping[str, Any]) -> bool:
    return (
        all(isinstance(row.get(name), str) for name in ("domain", "task", "metric"))
        and all(isinstance(row.get(name), int) for name in ("step", "tokens"))
        and isinstance(row.get("value"), int | float)
        and math.isfinite(row["value"])
    )


def _point(row: Mapping[str, Any]) -> Point:
    error = row.get("stderr")
    known = isinstance(error, int | float) and math.isfinite(error)
    return Point(
        step=row["step"], tokens=row["tokens"], value=float(row["value"]), stderr=float(error or 0) if known else None
    )


def _label(task: str, shots: Any, plan: Any, variants: list[tuple[Any, Any]]) -> str:
    """The task; shots and plan are added only where they tell two curves apart."""
    parts = [task]
    if len({other for other, _ in variants}) > 1:
        parts.append(f"{shots}-shot")
    if len({other for shots_of, other in variants if shots_of == shots}) > 1:
        parts.append(f"plan {str(plan)[:6]}")
    return ", ".join(parts)
