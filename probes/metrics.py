"""Continuous metrics of items from log-probabilities: what moves long before accuracy does.

Pure numpy on the columns of a plan's request table. Names and formulas are DataDecide's (arXiv 2504.11393,
section 3) and OLMo's where they have them, and OpenCompass's for PPL mode; lm-eval's own metrics are made in
`probes.lm_eval_metrics`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.plan import RequestTable

VARIANTS = ("", "_per_token", "_per_char", "_per_byte")
"""Suffixes: log-probabilities as they are, or divided by the continuation's length before exp."""

FAMILIES = ("correct_prob", "total_prob", "margin", "norm_correct_prob", "norm_margin", "soft_log")
"""Metrics that come with every suffix of `VARIANTS`."""

CONTINUOUS = frozenset(family + suffix for family in FAMILIES for suffix in VARIANTS) | {
    "gold_bpb",
    "ppl_acc",
    "ppl_gold",
}
"""All metrics of this file: they need the log-probabilities of answers that are given, and nothing that is written."""

DASHBOARD_METRICS = ("gold_bpb", "correct_prob", "margin", "norm_correct_prob", "norm_margin")
"""Those of this file that are shown beside lm-eval's; the others of `FAMILIES` are in the record only."""

RECORD_ONLY = frozenset(family + suffix for family in FAMILIES for suffix in VARIANTS) - set(DASHBOARD_METRICS)

RESCALED = ("acc", "acc_norm")
"""Accuracies that are also given as `<name>_rescaled`."""


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


@dataclass(frozen=True, slots=True)
class MissingMetric:
    """A metric of one task that could not be computed.

    Attributes:
        task: index of the task.
        metric: its name.
        reason: what went wrong, a phrase on one line.
    """

    task: int
    metric: str
    reason: str


Found = MetricValue | MissingMetric


def checked(value: MetricValue) -> Iterator[Found]:
    """A value that can be recorded; one that is not a finite number is missing, and so is such a standard error."""
    if not math.isfinite(value.value):
        yield MissingMetric(value.task, value.metric, f"its value is {value.value}")
        return
    if value.stderr is not None and not math.isfinite(value.stderr):
        yield MissingMetric(value.task, stderr_name(value.metric), f"its value is {value.stderr}")
        value = dataclasses.replace(value, stderr=None)
    yield value


def stderr_name(metric: str) -> str:
    """lm-eval's name of a metric's standard error: `acc_stderr`, `exact_match_stderr,strict`."""
    name, comma, filter_name = metric.partition(",")
    return f"{name}_stderr{comma}{filter_name}"


def is_stderr(metric: str) -> bool:
    """Whether a name is that of a standard error."""
    return metric.partition(",")[0].endswith("_stderr")


def item_metrics(table: RequestTable, log_likelihood_R: np.ndarray) -> list[MetricValue]:
    """Continuous metrics of every task: means over items of `item_values`, standard errors std(ddof=1) / √items.

    Args:
        table: columns of the plan.
        log_likelihood_R: float64 [requests].
    """
    found: list[MetricValue] = []
    for task in np.unique(table.task_R):
        for metric, value_I in item_values(table, int(task), log_likelihood_R).items():
            found.append(MetricValue(int(task), metric, *mean_and_stderr(value_I), len(value_I)))
    return found


def item_values(table: RequestTable, task: int, log_likelihood_R: np.ndarray) -> dict[str, np.ndarray]:
    """Continuous metrics of each item of a task.

    With p_i = exp(l_i) over the choices i of an item, G the right ones, l_i the natural log-likelihood of the
    whole continuation (or, by suffix, per token, per character, per byte of it), of items with a right answer:

    - `gold_bpb`: −l_c · log2(e) / bytes_c, bits per byte of the text of the first right answer c without leading
      white space (OLMo's in-loop bpb).
    - `correct_prob`: Σ p_i over G.

    Of items with two choices or more also:

    - `total_prob`: Σ p_i.
    - `norm_correct_prob`: `correct_prob` / `total_prob`, by log-sum-exp; TruthfulQA's mc2 where several are right.
    - `soft_log`: its natural logarithm (OLMo's), finite where `norm_correct_prob` has underflowed.
    - `margin`: the largest p_i of G − the largest p_i of the others, 0 if there are none: above 0 exactly where
      the likeliest choice is right, also where several are.
    - `norm_margin`: `margin` / `total_prob`. Unlike the raw ones, the norm_ metrics do not vanish on long answers.

    Of items whose prompts and answers were scored as one text (`ppl: true`), as OpenCompass's PPL mode does
    (icl_ppl_inferencer.py): a choice's score is the cross-entropy, summed over tokens 2 to n of prompt and answer,
    divided by n, not n − 1. Prompts too long lose tokens on the left here, not examples from the end.

    - `ppl_acc`: 1 where the choice with the lowest score, the first of equals, is right.
    - `ppl_gold`: the score of the right answer, the lowest of several; nats per token.

    Args:
        table: columns of the plan; requests of an item are neighbours.
        task: index of the task.
        log_likelihood_R: float64 [requests].

    Returns:
        By name, float64, one for each item that has the metric.
    """
    of_task = table.task_R == task
    values = _choice_values(table, _with_gold(table, np.flatnonzero(of_task & table.is_choice_R)), log_likelihood_R)
    values.update(_ppl_values(table, _with_gold(table, np.flatnonzero(of_task & table.is_whole_R)), log_likelihood_R))
    return values


def mean_and_stderr(values: np.ndarray) -> tuple[float, float | None]:
    """Mean over items and its standard error, std(ddof=1) / √n; None for a single item."""
    if len(values) < 2:
        return float(np.mean(values)), None
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def rescaled(value: float, chance: float) -> float:
    """(value − chance) / (1 − chance): 0 for guessing, 1 for everything right, below 0 for worse than guessing."""
    return (value - chance) / (1 - chance)


def rescaled_accuracies(values: Sequence[MetricValue], chance: Mapping[int, float]) -> list[MetricValue]:
    """`acc_rescaled` and `acc_norm_rescaled` of every task that has the accuracy.

    Tasks differ in what guessing gives: of the rescaled accuracies, not of the plain ones, a mean over tasks makes
    sense. Standard errors are those of the accuracies / (1 − chance).

    Args:
        values: metrics of tasks.
        chance: accuracy of guessing by index of the task; 0 for a task that is not in it.
    """
    found = []
    for value in values:
        level = chance.get(value.task, 0.0)
        if value.metric in RESCALED and level < 1:
            stderr = None if value.stderr is None else value.stderr / (1 - level)
            name = f"{value.metric}_rescaled"
            found.append(MetricValue(value.task, name, rescaled(value.value, level), stderr, value.num_items))
    return found


def answer_starts(table: RequestTable) -> tuple[np.ndarray, np.ndarray]:
    """Which requests answer lm-eval's, and where among them a new one of lm-eval's begins.

    A request of lm-eval's for the log-likelihood of a text has as many of ours as the text has windows.

    Returns:
        int64 [answering requests], indices into the table; int64 [requests of lm-eval's], indices into the former.
    """
    requests = np.flatnonzero(~table.is_whole_R)
    names = np.stack([table.task_R[requests], table.item_R[requests], table.choice_R[requests]])
    return requests, np.flatnonzero(np.any(np.diff(names, axis=1, prepend=-1), axis=0))


def item_starts(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal numbers starts, and how long it is."""
    starts = np.flatnonzero(np.diff(items, prepend=-1))
    return starts, np.diff(np.append(starts, len(items)))


def first_right(table: RequestTable, requests: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Whether the highest score of each item, the first of equals, is that of a right answer; float64 [items].

    Args:
        table: columns of the plan.
        requests: choices, those of an item next to each other.
        scores: one for each of `requests`.
    """
    starts, counts = item_starts(table.item_R[requests])
    best = scores == np.repeat(np.maximum.reduceat(scores, starts), counts)
    places = np.where(best, np.arange(len(scores)), len(scores))
    return table.is_gold_R[requests][np.minimum.reduceat(places, starts)].astype(np.float64)


def _with_gold(table: RequestTable, requests: np.ndarray) -> np.ndarray:
    """Those of the requests whose item has a right answer among them."""
    if not len(requests):
        return requests
    starts, counts = item_starts(table.item_R[requests])
    return requests[np.repeat(np.logical_or.reduceat(table.is_gold_R[requests], starts), counts)]


def _choice_values(table: RequestTable, requests: np.ndarray, log_likelihood_R: np.ndarray) -> dict[str, np.ndarray]:
    if not len(requests):
        return {}
    starts, counts = item_starts(table.item_R[requests])
    gold = table.is_gold_R[requests]
    several = counts > 1
    first_gold = requests[np.minimum.reduceat(np.where(gold, np.arange(len(gold)), len(gold)), starts)]
    bits = -log_likelihood_R[first_gold] * math.log2(math.e)
    values = {"gold_bpb": bits / table.num_bytes_R[first_gold]}
    lengths = (None, table.num_tokens_R, table.num_chars_R, table.num_bytes_R)
    for suffix, length_R in zip(VARIANTS, lengths, strict=True):
        scores = log_likelihood_R[requests] / (1 if length_R is None else length_R[requests])
        log_right = _log_sum_exp(np.where(gold, scores, -np.inf), starts, counts)
        values[f"correct_prob{suffix}"] = np.exp(log_right)
        if several.any():
            log_total = _log_sum_exp(scores, starts, counts)
            best_right = np.maximum.reduceat(np.where(gold, scores, -np.inf), starts)
            best_wrong = np.maximum.reduceat(np.where(gold, -np.inf, scores), starts)
            for name, value in {
                "total_prob": np.exp(log_total),
                "norm_correct_prob": np.exp(log_right - log_total),
                "soft_log": log_right - log_total,
                "margin": np.exp(best_right) - np.exp(best_wrong),
                "norm_margin": np.exp(best_right - log_total) - np.exp(best_wrong - log_total),
            }.items():
                values[name + suffix] = value[several]
    return values


def _ppl_values(table: RequestTable, requests: np.ndarray, log_likelihood_R: np.ndarray) -> dict[str, np.ndarray]:
    if not len(requests):
        return {}
    starts, _ = item_starts(table.item_R[requests])
    scores = -log_likelihood_R[requests] / (table.num_tokens_R[requests] + 1)  # + 1: the first token, given
    right = np.minimum.reduceat(np.where(table.is_gold_R[requests], scores, np.inf), starts)
    return {
        "ppl_acc": first_right(table, requests, -scores),
        "ppl_gold": right,
    }


def _log_sum_exp(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The logarithm of Σ exp of each run of scores, at least one of which is finite."""
    top = np.maximum.reduceat(scores, starts)
    return np.asarray(top + np.log(np.add.reduceat(np.exp(scores - np.repeat(top, counts)), starts)))
