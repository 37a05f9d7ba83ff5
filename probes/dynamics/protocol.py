"""Whether a run's score was measured as a published one was: task, metric, examples in the prompt, items.

Names of older lm-eval versions are understood. What differs is refused with the reason, or remarked on where the scores
can be compared all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from probes.dynamics.metrics import is_accuracy
from probes.dynamics.published_recipes import FULL_ITEMS, NEW_NAMES
from probes.dynamics.table import CurveTable, Series, TaskCurve

_SUBJECTS = 57
_PARTS = ("hendrycksTest-", "mmlu_")
_FIELDS = frozenset({"mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other"})
_BUNDLED = "fineline_"
_NO_PLAIN_MEANS = ("truthfulqa_mc2", "mmlu")
"""Graded, or a mean of means, whose standard error is below that of as many right or wrong answers."""
_ITEMS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Matched:
    """A run's curve that can be held against a published one.

    Attributes:
        curve: its scores.
        remarks: what differs all the same.
    """

    curve: TaskCurve
    remarks: tuple[str, ...]


def match(table: CurveTable, run: str, wanted: Series) -> Matched | str:
    """The run's curve of a published score, or why none can be compared.

    Args:
        table: has the run.
        run: its name.
        wanted: the score, by its present name.
    """
    own = [(present(curve.series), curve) for curve in table.curves if curve.run == run]
    found = [curve for series, curve in own if series == wanted]
    if found:
        # Of several plans, as of a fast tier beside the whole suite, the one over all items.
        chosen = min(found, key=lambda curve: (bool(_items(curve, wanted)), -len(curve)))
        return Matched(chosen, (*_renamed(chosen.series, wanted), *_items(chosen, wanted)))
    if wanted.task == "mmlu" and any(curve.task.startswith(_PARTS) for _, curve in own):
        return _mean_of_subjects([curve for _, curve in own], wanted)
    same_task = sorted({series for series, _ in own if series.task == wanted.task})
    if any(series.metric == wanted.metric and series.num_fewshot < 0 for series in same_task):
        return "how many examples the run's prompts had is not known: say it in the column num_fewshot"
    if same_task:
        return f"the run has {'; '.join(map(_words, same_task))}: score it with {_words(wanted)}"
    if any(curve.task == _BUNDLED + wanted.task for _, curve in own):
        return f"the run has the bundled excerpt {_BUNDLED}{wanted.task}, which has other items: score it on all"
    return "the run was not scored on it"


def present(series: Series) -> Series:
    """The name that lm-eval gives a score since 0.4."""
    task, metric = NEW_NAMES.get((series.task, series.metric), (series.task, series.metric))
    return Series(task, metric, series.num_fewshot)


def items_of(curve: TaskCurve) -> float:
    """How many items a score is a mean over, as its standard error tells; nan where that is unknown or 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        items_C = curve.value_C * (1.0 - curve.value_C) / curve.stderr_C**2 + 1.0
    known_C = items_C[np.isfinite(items_C) & (curve.stderr_C > 0)]
    return float(np.median(known_C)) if len(known_C) else float("nan")


def _items(curve: TaskCurve, wanted: Series) -> tuple[str, ...]:
    """A remark where the items are not all; of a graded score the number told is at least the true one."""
    whole, told = FULL_ITEMS.get(wanted.task), items_of(curve)
    if whole is None or not np.isfinite(told):
        return ()
    graded = not is_accuracy(wanted.metric) or wanted.task in _NO_PLAIN_MEANS
    if told < (1.0 - _ITEMS_SHARE) * whole or (not graded and told > (1.0 + _ITEMS_SHARE) * whole):
        kind = "at most" if graded else "about"
        return (f"by its standard error the run was scored on {kind} {round(told):,} items, the original on {whole:,}",)
    return ()


def _renamed(own: Series, wanted: Series) -> tuple[str, ...]:
    same = own.task == wanted.task and own.metric == wanted.metric
    return () if same else (f"recorded as {own.task} ({own.metric}), its name before lm-eval 0.4",)


def _mean_of_subjects(curves: list[TaskCurve], wanted: Series) -> Matched | str:
    """MMLU of its parts, where no score of the whole was recorded."""
    for prefix in _PARTS:
        parts = [
            curve
            for curve in curves
            if curve.task.startswith(prefix)
            and curve.task not in _FIELDS
            and (curve.metric, curve.num_fewshot) == (wanted.metric, wanted.num_fewshot)
        ]
        tokens_C = parts[0].tokens_C if parts else np.zeros(0)
        if len(parts) == _SUBJECTS and all(np.array_equal(part.tokens_C, tokens_C) for part in parts):
            value_C = np.mean([part.value_C for part in parts], axis=0)
            stderr_C = np.sqrt(np.sum([part.stderr_C**2 for part in parts], axis=0)) / _SUBJECTS
            whole = replace(parts[0], task=wanted.task, value_C=value_C, stderr_C=stderr_C)
            return Matched(whole, (f"mean over the {_SUBJECTS} subjects {prefix}*",))
    return (
        f"the run has no score of the whole, and not all {_SUBJECTS} subjects with {_words(wanted)} at the same "
        f"checkpoints"
    )


def _words(series: Series) -> str:
    shots = f", {series.num_fewshot}-shot" if series.num_fewshot >= 0 else ", shots unknown"
    return f"{series.metric}{shots}"
