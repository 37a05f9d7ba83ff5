"""Puts a run beside a published original, score by score at equal tokens, with a band for what noise explains.

Only scores of one protocol are compared: task, metric and number of examples are the same, or the pair is refused with
the reason. The original is interpolated in the logarithm of tokens between its checkpoints, never extrapolated.

The band of a difference holds 95 % of the differences that noise makes between equal models: standard errors over items
of both, taken for independent, and the rounding or reading of what was published, taken for even within its half width.
Two runs answer the same items, which makes real differences smaller: between Pythia's runs on standard and deduplicated
data (five-shot ARC, PIQA, WinoGrande, LogiQA) their spread is 0.6 of it, so that a verdict is rather too mild.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from pretrain.track.legible import legible_count
from probes.dynamics.expectation import TASK_CORRELATION
from probes.dynamics.noise import log_tokens
from probes.dynamics.originals import Original
from probes.dynamics.protocol import Matched, match
from probes.dynamics.published_recipes import PublishedCurve, published_error
from probes.dynamics.table import CurveTable, Series, TaskCurve
from probes.dynamics.trust import holm

LEVEL = 0.95
"""Share of the differences of equal models that lie in the band; errors of the verdicts over tasks are 1 - LEVEL."""
REACH = 0.01
"""A checkpoint this share of tokens beyond an end of the original is held against that end."""
WITHIN, ABOVE, BELOW = "within", "above", "below"
"""Verdicts: of a checkpoint, about its band; of a task or of all, whether noise explains the mean difference."""

_QUANTILE = float(special.ndtri(0.5 + LEVEL / 2.0))
_SIZE_SHARE = 0.1
_WORDS = {WITHIN: "within noise", ABOVE: "above the original", BELOW: "below the original"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskBeside:
    """One score of a run beside the original's, at the K checkpoints of the run where both are known.

    Attributes:
        series: what is compared, by its present name.
        step_K: the run's steps.
        tokens_K: the run's tokens.
        value_K: its scores.
        stderr_K: their standard errors over items.
        original_K: the original's score there.
        half_K: half width of the band of the difference.
        adjusted: p of the mean difference over the checkpoints, adjusted for all scores compared (Holm).
        remarks: protocol differences that do not forbid the comparison.
    """

    series: Series
    step_K: np.ndarray
    tokens_K: np.ndarray
    value_K: np.ndarray
    stderr_K: np.ndarray
    original_K: np.ndarray
    half_K: np.ndarray
    adjusted: float = 1.0
    remarks: tuple[str, ...] = ()

    @property
    def difference_K(self) -> np.ndarray:
        """Run minus original."""
        return self.value_K - self.original_K

    @property
    def verdicts(self) -> list[str]:
        """Of each checkpoint."""
        return [_verdict(difference, half) for difference, half in zip(self.difference_K, self.half_K, strict=True)]

    @property
    def outside(self) -> int:
        """Checkpoints outside the band."""
        return sum(verdict != WITHIN for verdict in self.verdicts)

    @property
    def mean_difference(self) -> float:
        """Over the checkpoints."""
        return float(self.difference_K.mean())

    @property
    def in_bands(self) -> float:
        """Mean difference in half widths of the band; checkpoints share their items, so that their mean is no surer."""
        return self.mean_difference / float(self.half_K.mean())

    @property
    def verdict(self) -> str:
        """Of the mean difference, at the level that holds for all scores together."""
        return _judgement(self.mean_difference, self.adjusted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A run beside an original.

    Attributes:
        run: its name.
        original: what it is beside.
        tasks: the scores compared.
        refused: scores of the original that are not compared, with the reason.
        remarks: what holds for all of them.
        in_bands: mean difference over all tasks, in half widths of its band.
        adjusted: its p, adjusted together with those of the tasks.
    """

    run: str
    original: Original
    tasks: Sequence[TaskBeside]
    refused: dict[Series, str]
    remarks: tuple[str, ...]
    in_bands: float
    adjusted: float

    @property
    def verdict(self) -> str:
        """Of all tasks together."""
        return _judgement(self.in_bands, self.adjusted)


def put_beside(table: CurveTable, run: str, original: Original) -> Beside:
    """Compares a run of a table with an original.

    Args:
        table: has the run.
        run: its name.
        original: of `find_original`.
    """
    tasks, refused = [], {}
    for series, published in original.curves.items():
        matched = match(table, run, series)
        found = _beside(matched, published) if isinstance(matched, Matched) else matched
        if isinstance(found, str):
            refused[series] = found
        else:
            tasks.append(found)
    adjusted, in_bands = _judged(tasks)
    judged = [replace(task, adjusted=p) for task, p in zip(tasks, adjusted[:-1], strict=True)]
    remarks = _remarks(table, run, original)
    return Beside(
        run=run,
        original=original,
        tasks=judged,
        refused=refused,
        remarks=remarks,
        in_bands=in_bands,
        adjusted=adjusted[-1],
    )


def original_at(published: PublishedCurve, tokens_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, standard error and half width of the published error at these tokens, nan outside what was published.

    Linear in the logarithm of tokens between two checkpoints.
    """
    known_C, wanted_Q = log_tokens(published.curve.tokens_C), np.log(np.maximum(tokens_Q, 1e-9))
    slack = np.log1p(REACH)
    inside_Q = (wanted_Q >= known_C[0] - slack) & (wanted_Q <= known_C[-1] + slack) & (tokens_Q > 0)
    columns = published.curve.value_C, published.curve.stderr_C, published.error_C
    value_Q, stderr_Q, error_Q = (
        np.where(inside_Q, np.interp(wanted_Q, known_C, column), np.nan) for column in columns
    )
    return value_Q, stderr_Q, error_Q


def band_about(found: Beside, task: TaskBeside) -> tuple[PublishedCurve, np.ndarray]:
    """The original's curve and the half width of the band about each point of it, for a run with this run's errors."""
    published = found.original.curves[task.series]
    others_K = original_at(published, task.tokens_K)[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = float(np.nan_to_num(np.median(task.stderr_K / others_K), nan=1.0, posinf=1.0))
    stderr_C = np.nan_to_num(published.curve.stderr_C, nan=float(np.mean(task.stderr_K)))
    return published, half_width(ratio * stderr_C, stderr_C, published.error_C)


def half_width(stderr_Q: np.ndarray, others_Q: np.ndarray, error_Q: np.ndarray) -> np.ndarray:
    """Half width of the band of a difference: two standard errors, and an even error within ± `error_Q`."""
    return np.asarray(_QUANTILE * np.sqrt(stderr_Q**2 + others_Q**2 + error_Q**2 / 3.0))


def sentence(task: TaskBeside) -> str:
    """What is to be said of one score."""
    count = len(task.tokens_K)
    first, last = (legible_count(float(tokens)) for tokens in task.tokens_K[[0, -1]])
    latest = task.verdicts[-1] + (" the band" if task.verdicts[-1] == WITHIN else "")
    mean, beyond = "", f"one checkpoint, at {last} tokens"
    if count > 1:
        mean = " on average"
        beyond = f"{task.outside} of {count} checkpoints outside it, {first} to {last} tokens, the latest {latest}"
    remarks = f". Note: {'; '.join(task.remarks)}" if task.remarks else ""
    return (
        f"{task.series}: {_WORDS[task.verdict]}; {task.mean_difference:+.4f}{mean}, {task.in_bands:+.2f} of the "
        f"band; {beyond}{remarks}"
    )


def summary(found: Beside) -> str:
    """What is to be said of all scores together."""
    off = [f"{task.verdict} in {task.series}" for task in found.tasks if task.verdict != WITHIN]
    told = ", ".join(off) if off else "none differs beyond noise"
    count = len(found.tasks)
    late = sum(task.verdicts[-1] != WITHIN for task in found.tasks)
    return (
        f"{found.run} beside {found.original.title}, {count} score{'s' if count > 1 else ''}: {told} (Holm over all, "
        f"{1.0 - LEVEL:.0%}). Taken together {_WORDS[found.verdict]}, mean difference {found.in_bands:+.2f} of the "
        f"band. At the latest checkpoint {late} of {count} outside the band, {(1.0 - LEVEL) * count:.1f} to be "
        f"expected by noise."
    )


def _beside(matched: Matched, published: PublishedCurve) -> TaskBeside | str:
    """The comparison, or why there is none."""
    curve = matched.curve
    original_C, others_C, error_C = original_at(published, curve.tokens_C)
    kept_C = np.isfinite(original_C)
    if not kept_C.any():
        return (
            f"published at {_span(published.curve)} tokens, the run has checkpoints at {_span(curve)}: nothing is "
            f"extrapolated"
        )
    remarks = list(matched.remarks)
    stderr_C, own_error_C = curve.stderr_C, published_error(curve)
    if not np.isfinite(stderr_C[kept_C]).all():
        if not np.isfinite(others_C[kept_C]).all():
            return "standard errors of the run and of the original are unknown: no band can be drawn. Add stderr"
        stderr_C = np.where(np.isfinite(stderr_C), stderr_C, others_C)
        remarks.append("the run's standard error is unknown and taken to be the original's")
    others_C = np.where(np.isfinite(others_C), others_C, stderr_C)
    half_C = half_width(stderr_C, others_C, np.hypot(error_C, own_error_C))
    return TaskBeside(
        series=published.curve.series,
        step_K=curve.step_C[kept_C],
        tokens_K=curve.tokens_C[kept_C],
        value_K=curve.value_C[kept_C],
        stderr_K=stderr_C[kept_C],
        original_K=original_C[kept_C],
        half_K=np.maximum(half_C[kept_C], 1e-12),
        remarks=tuple(remarks),
    )


def _judged(tasks: Sequence[TaskBeside]) -> tuple[list[float], float]:
    """Holm's adjusted p of each task, then of all together, whose mean difference in bands is returned, too.

    Metrics of one benchmark count once, as their mean; benchmarks have the correlation of healthy runs' deviations.
    """
    if not tasks:
        return [1.0], float("nan")
    groups: dict[str, list[float]] = {}
    for task in tasks:
        groups.setdefault(_benchmark(task.series.task), []).append(task.in_bands)
    mean = float(np.mean([np.mean(one) for one in groups.values()]))
    spread = np.sqrt((1.0 + (len(groups) - 1) * TASK_CORRELATION) / len(groups))
    deviation_T = np.abs([task.in_bands for task in tasks] + [mean / spread]) * _QUANTILE
    return holm(2.0 * special.ndtr(-deviation_T)).tolist(), mean


def _span(curve: TaskCurve) -> str:
    first, last = (legible_count(float(tokens)) for tokens in curve.tokens_C[[0, -1]])
    return first if first == last else f"{first} to {last}"


def _benchmark(task: str) -> str:
    return "truthfulqa" if task.startswith("truthfulqa") else task


def _judgement(difference: float, adjusted: float) -> str:
    if not adjusted < 1.0 - LEVEL:
        return WITHIN
    return ABOVE if difference > 0 else BELOW


def _verdict(difference: float, half: float) -> str:
    if abs(difference) <= half:
        return WITHIN
    return ABOVE if difference > 0 else BELOW


def _remarks(table: CurveTable, run: str, original: Original) -> tuple[str, ...]:
    own, theirs = table.runs[run].parameters, original.facts.parameters
    if not own:
        return (f"The size of {run} is not known: whether it is that of {original.title} was not checked.",)
    if theirs and abs(own / theirs - 1.0) > _SIZE_SHARE:
        return (
            f"{run} has {legible_count(own)} parameters, {original.title} {legible_count(theirs)}: this is no "
            f"repetition, and differences are of size, too.",
        )
    return ()
