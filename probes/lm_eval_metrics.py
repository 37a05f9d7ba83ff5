"""lm-eval's own metrics of a task, from answers to its requests: its filters, `process_results`, aggregations.

Imports lm-eval (lazily). Standard errors are made here: lm-eval's bootstrap forks a pool of processes and draws
100,000 times, neither of which belongs beside live training.
"""

from __future__ import annotations

import math
import numbers
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probes.capture import by_item, metric_names
from probes.metrics import Found, MetricValue, MissingMetric, checked, stderr_name

BOOTSTRAP_RESAMPLES = 200
"""Resamples of a bootstrapped standard error, which is then known to 5 % (1 / √(2 · 200))."""


_ANY = (Exception, SystemExit)
"""What the code of lm-eval's and of users' tasks may raise; each cause is recorded."""
_LONGEST_REASON = 300

EVERY_METRIC = "every metric"
"""Stands for the names of a task that cannot even say what its metrics are called."""


def task_metrics(task: Any, index: int) -> Iterator[Found]:
    """What `lm_eval.evaluator.evaluate` does after the model has answered, for one task.

    Names are lm-eval's, `name,filter` for filters other than the default one. Whatever lm-eval's or the user's code
    raises costs what it was to compute, and is the reason why that is missing.

    Args:
        task: lm-eval's Task, its instances answered (`resps`).
        index: of the task in the suite.
    """
    for one in task._filters:  # as `Task.apply_filters` does
        try:
            one.apply(task.instances)
        except _ANY as error:
            yield from all_missing(task, index, _reason(f"filter {one.name}", error), filter_name=one.name)
    items = by_item(task.instances)
    for filter_name in task.instances[0].filtered_resps:
        values: dict[str, list[Any]] = {}
        try:
            for instances in items.values():
                item = instances[0].doc_id
                answers = [instance.filtered_resps[filter_name] for instance in instances]
                for metric, value in task.process_results(instances[0].doc, answers).items():
                    values.setdefault(metric, []).append(value)
        except _ANY as error:
            reason = _reason("process_results", error, where=f" on item {item}")
            yield from all_missing(task, index, reason, filter_name=filter_name)
            continue
        for metric, per_item in values.items():
            yield from _aggregated(task, index, metric=metric, filter_name=filter_name, values=per_item)


def all_missing(task: Any, index: int, reason: str, *, filter_name: str = "none") -> Iterator[MissingMetric]:
    """All metrics of a task, for one reason."""
    for name in metric_names(task) or [EVERY_METRIC]:
        yield MissingMetric(index, _named(name, filter_name), reason)


def _aggregated(task: Any, index: int, *, metric: str, filter_name: str, values: Sequence[Any]) -> Iterator[Found]:
    """One metric over its items, with its standard error."""
    from lm_eval.api import metrics

    name = _named(metric, filter_name)
    try:
        aggregate = task.aggregation().get(metric, metrics.mean)
        result = aggregate(values)
        value = _number(result)
    except _ANY as error:
        yield MissingMetric(index, name, _reason("its aggregation", error))
        return
    if value is None:
        yield MissingMetric(index, name, f"its value is a {type(result).__name__}, not a number")
        return
    stderr = None
    try:
        stderr = standard_error(aggregate, values)
    except _ANY as error:
        yield MissingMetric(index, stderr_name(name), _reason("its computation", error))
    num_items = len(values) - (int(np.isnan(values).sum()) if aggregate is metrics.nanmean else 0)
    yield from checked(MetricValue(index, name, value, stderr, num_items))


def _named(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch as a float; None for anything else."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, numbers.Real) else None


def _reason(what: str, error: BaseException, *, where: str = "") -> str:
    """A phrase on one line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what} failed{where}: {said[:_LONGEST_REASON]}"


def standard_error(aggregate: Any, values: Sequence[Any]) -> float | None:
    """Standard error of an aggregation of lm-eval's over items; None for one item or an aggregation unknown here.

    - `mean`, `acc_all`: lm-eval's closed forms.
    - `perplexity`: the delta method, where lm-eval bootstraps.
    - `weighted_perplexity`, `bits_per_byte`: that of a ratio of sums, by linearisation; lm-eval has none.
    - `brier_score`: that of the mean over items; lm-eval has none.
    - `f1`, `matthews_corrcoef`, `median`, `nanmean`: lm-eval's bootstrap with its seeds, in this process.
    """
    from lm_eval.api import metrics

    if len(values) < 2:
        return None
    if aggregate is metrics.acc_all:
        return float(metrics.acc_all_stderr(values))
    if aggregate is metrics.mean:
        return _of_the_mean(values)
    if aggregate is metrics.perplexity:
        return math.exp(-float(np.mean(values))) * _of_the_mean(values)
    if aggregate in (metrics.weighted_perplexity, metrics.bits_per_byte):
        slope = aggregate(values) if aggregate is metrics.weighted_perplexity else 1 / math.log(2)
        return slope * _of_a_ratio(values)
    if aggregate is metrics.brier_score:
        return _of_the_mean([metrics.brier_score([value]) for value in values])
    if aggregate in (metrics.f1_score, metrics.matthews_corrcoef, metrics.median, metrics.nanmean):
        return _bootstrapped(aggregate, values)
    return None


def _of_the_mean(values: Sequence[Any]) -> float:
    return float(np.std(np.asarray(values, np.float64), ddof=1) / math.sqrt(len(values)))


def _of_a_ratio(values: Sequence[tuple[float, float]]) -> float:
    """Σa / Σb over items (a, b), as if b were fixed: √n · std(a − Rb) / Σb."""
    above, below = np.asarray(values, np.float64).T
    residual = above - above.sum() / below.sum() * below
    return float(math.sqrt(len(values)) * np.std(residual, ddof=1) / below.sum())


def _bootstrapped(aggregate: Any, values: Sequence[Any]) -> float:
    """What lm-eval's `bootstrap_stderr` gives for that many resamples (at most 1,000), without its processes."""
    from lm_eval.api import metrics

    draw = random.Random(0)
    places = np.array([draw.choices(range(len(values)), k=len(values)) for _ in range(BOOTSTRAP_RESAMPLES)])
    if aggregate in (metrics.f1_score, metrics.matthews_corrcoef):
        labels = np.asarray(values)
        if np.isin(labels, (0, 1)).all():  # scikit-learn takes 5 ms for each resample, at every save
            binary = _f1 if aggregate is metrics.f1_score else _matthews
            gold, predicted = labels[places].astype(bool).transpose(2, 0, 1)
            return float(np.std(binary(gold, predicted), ddof=1))
    return float(np.std([aggregate([values[place] for place in drawn]) for drawn in places], ddof=1))


def _f1(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 of label 1 over the last axis; 0 where nothing is or is taken for 1."""
    total = gold.sum(-1) + predicted.sum(-1)
    return np.asarray(2 * (gold & predicted).sum(-1) / np.maximum(total, 1))


def _matthews(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Matthews' correlation over the last axis; 0 where either is constant."""
    covariance = (gold & predicted).mean(-1) - gold.mean(-1) * predicted.mean(-1)
    deviations = gold.std(-1) * predicted.std(-1)
    return np.where(deviations > 0, covariance / np.where(deviations > 0, deviations, 1), 0.0)
