"""Continuous metrics of items from log-probabilities: what moves long before accuracy does.

Pure numpy on the columns of a plan's request table. Names and formulas are DataDecide's (arXiv 2504.11393,
section 3) where it has them; lm-eval's own metrics are made in `probes.harness`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from probes.plan import RequestTable

VARIANTS = ("", "_per_token", "_per_char", "_per_byte")
"""Suffixes: log-probabilities as they are, or divided by the continuation's length before exp."""

DASHBOARD_METRICS = ("gold_bpb", "correct_prob", "margin", "norm_correct_prob", "norm_margin")
"""Those of this file that are shown beside lm-eval's; the others are in the record only."""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric of one task.

    Attributes:
        task: index of the task.
        metric: its name.
        value: aggregated over items.
        stderr: its standard error over items; None where it is not known.
        num_items: items it was aggregated over.
    """

    task: int
    metric: str
    value: float
    stderr: float | None
    num_items: int


def item_metrics(table: RequestTable, log_likelihood_R: np.ndarray) -> list[MetricValue]:
    """Continuous metrics of every task.

    With p_i = exp(l_i) over the choices i of an item, c the right one, l_i the natural log-likelihood of the
    whole continuation (or, by suffix, per token, per character, per byte of it):

    - `gold_bpb`: −l_c · log2(e) / bytes_c, bits per byte of the right continuation's text without leading
      white space (OLMo's in-loop bpb); any item with a right answer.
    - `correct_prob`: p_c; any item with a right answer.
    - `margin`: p_c − max over i ≠ c of p_i; items with two choices or more, as are the following.
    - `norm_correct_prob`: p_c / Σ p_i, by log-sum-exp.
    - `norm_margin`: `margin` of p_i / Σ p. Unlike the raw ones, the norm_ metrics do not vanish on long answers.

    Items without exactly one known right answer have none of them. Values are means over items, standard
    errors the sample standard deviation (ddof=1) over √items.

    Args:
        table: columns of the plan.
        log_likelihood_R: float64 [requests].
    """
    found: list[MetricValue] = []
    for task in np.unique(table.task_R):
        requests = np.flatnonzero((table.task_R == task) & table.is_choice_R)
        for metric, values in _task_values(table, requests, log_likelihood_R).items():
            found.append(MetricValue(int(task), metric, *mean_and_stderr(values), len(values)))
    return found


def mean_and_stderr(values: np.ndarray) -> tuple[float, float | None]:
    """Mean over items and its standard error, std(ddof=1) / √n; None for a single item."""
    if len(values) < 2:
        return float(np.mean(values)), None
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _task_values(table: RequestTable, requests: np.ndarray, log_likelihood_R: np.ndarray) -> dict[str, np.ndarray]:
    """Values of each metric over the task's items; `requests` are its choices, items next to each other."""
    items = table.item_R[requests]
    starts = np.flatnonzero(np.diff(items, prepend=-1))
    counts = np.diff(np.append(starts, len(items)))
    has_gold = np.repeat(np.add.reduceat(table.is_gold_R[requests].astype(int), starts) == 1, counts)
    requests = requests[has_gold]
    if not len(requests):
        return {}
    values: dict[str, np.ndarray] = {}
    gold = requests[table.is_gold_R[requests]]
    values["gold_bpb"] = -log_likelihood_R[gold] * math.log2(math.e) / table.num_bytes_R[gold]
    several = _in_items_of_several(table, requests)
    lengths = (None, table.num_tokens_R, table.num_chars_R, table.num_bytes_R)
    for suffix, length in zip(VARIANTS, lengths, strict=True):
        scores = log_likelihood_R if length is None else log_likelihood_R / length
        values[f"correct_prob{suffix}"] = np.exp(scores[gold])
        if len(several):
            for name, per_item in _choice_values(table, several, scores).items():
                values[name + suffix] = per_item
    return values


def _in_items_of_several(table: RequestTable, requests: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(table.item_R[requests], return_inverse=True, return_counts=True)
    return requests[counts[inverse] > 1]


def _choice_values(table: RequestTable, requests: np.ndarray, scores_R: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of items with several choices, exactly one of them gold."""
    starts = np.flatnonzero(np.diff(table.item_R[requests], prepend=-1))
    gold = table.is_gold_R[requests]
    scores = scores_R[requests]
    top = np.maximum.reduceat(scores, starts)
    counts = np.diff(np.append(starts, len(scores)))
    log_total = top + np.log(np.add.reduceat(np.exp(scores - np.repeat(top, counts)), starts))
    best_other = np.maximum.reduceat(np.where(gold, -np.inf, scores), starts)
    norm_gold = np.exp(scores[gold] - log_total)
    return {
        "margin": np.exp(scores[gold]) - np.exp(best_other),
        "norm_correct_prob": norm_gold,
        "norm_margin": norm_gold - np.exp(best_other - log_total),
    }
