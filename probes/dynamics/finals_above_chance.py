"""Which scores are still guessed where only the ends of runs are known: judged across models instead of over time.

The usual table for scaling laws has one row a model. `probes.dynamics.chance` needs curves; here a score must rise with
compute from model to model, and the largest models must be above guessing.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy import stats

from probes.dynamics.law_points import finished_curves
from probes.dynamics.table import CurveTable, Series, TaskCurve
from probes.dynamics.trust import TrustRule, holm

FEWEST_MODELS = 5
_LARGEST_P_VALUE = 0.01
_LEAST_RISE = 0.5
_LEAST_ABOVE = 2.0
"""Standard errors; few, since the rise alone keeps luck out."""
_LARGEST_SHARE = 1 / 3
"""Of the models, by compute, whose mean must be above guessing."""


def has_finals_only(table: CurveTable, series: Series) -> bool:
    """Whether no run has enough checkpoints for a verdict over time."""
    return all(
        len(curve.since_step(curve.first_steps(table.runs[curve.run].total_tokens))) < TrustRule().checkpoints
        for curve in table.of_series(series)
    )


def finals_at_chance(table: CurveTable, series: Collection[Series]) -> dict[Series, str]:
    """The series that no law should be fitted to, with the reason in words.

    A series must rise with compute (Spearman's ρ of at least .5, p at most .01 after Holm's correction over the
    series), and where the score of guessing is known, the mean of the third of the models with the most compute must
    be two standard errors above it: errors over items, or where those are unknown, the scatter between neighbours in
    compute.

    Args:
        table: finished runs of known sizes; others are passed over.
        series: scores, of which only ends are known.
    """
    curves = {one: finished_curves(table, one) for one in series}
    enough = [one for one in series if len(curves[one]) >= FEWEST_MODELS]
    ranks = [_rise(table, curves[one]) for one in enough]
    p_values = dict(zip(enough, holm(np.array([p for _, p in ranks])), strict=True))
    rises = {one: rise for one, (rise, _) in zip(enough, ranks, strict=True)}
    found = {}
    for one in series:
        if one not in rises:
            found[one] = (
                f"{len(curves[one])} finished models of known size: {FEWEST_MODELS} are needed to tell a score from "
                f"guessing where each has its last checkpoint only."
            )
        elif not (rises[one] >= _LEAST_RISE and p_values[one] <= _LARGEST_P_VALUE):
            found[one] = (
                f"no rise with compute over {len(curves[one])} models that is more than luck (rank correlation "
                f"{rises[one]:.2f}, p = {p_values[one]:.2g} after Holm)."
            )
        elif (above := _above(table, curves[one])) < _LEAST_ABOVE:
            found[one] = (
                f"at chance: the third of the models with the most compute is {above:.1f} standard errors above "
                f"guessing on average, {_LEAST_ABOVE:g} are needed."
            )
    return found


def _rise(table: CurveTable, curves: list[TaskCurve]) -> tuple[float, float]:
    """Rank correlation of score and compute, and its one-sided p-value; 0 and 1 where all scores are equal."""
    flops_M, value_M, _ = _by_compute(table, curves)
    if np.ptp(value_M) == 0 or np.ptp(flops_M) == 0:
        return 0.0, 1.0
    found = stats.spearmanr(flops_M, value_M, alternative="greater")
    return float(found.statistic), float(found.pvalue)


def _above(table: CurveTable, curves: list[TaskCurve]) -> float:
    """Standard errors by which the largest models' mean is above guessing; infinite where guessing means nothing."""
    chance = curves[0].chance
    if not np.isfinite(chance):
        return float("inf")
    _, value_M, stderr_M = _by_compute(table, curves)
    largest = slice(-max(int(np.ceil(_LARGEST_SHARE * len(value_M))), 2), None)
    # The items are the same for all models, so their errors do not average out.
    stderr = float(np.sqrt(np.mean(stderr_M[largest] ** 2)))
    if not np.isfinite(stderr):
        stderr = _scatter(value_M)
    excess = float(np.mean(value_M[largest])) - chance
    return excess / stderr if stderr > 0 else float("inf") * np.sign(excess)


def _scatter(value_M: np.ndarray) -> float:
    """Standard deviation of a score about the line between its neighbours in compute, from the median distance."""
    bend_M = value_M[1:-1] - (value_M[:-2] + value_M[2:]) / 2
    return float(np.median(np.abs(bend_M)) / stats.norm.ppf(0.75) / np.sqrt(1.5))


def _by_compute(table: CurveTable, curves: list[TaskCurve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FLOPs, last score and its standard error of M models, the least compute first."""
    flops_M = np.array([float(table.runs[curve.run].flops(curve.tokens_C[-1:])[0]) for curve in curves])
    order_M = np.argsort(flops_M, kind="stable")
    value_M = np.array([curve.value_C[-1] for curve in curves])
    stderr_M = np.array([curve.stderr_C[-1] for curve in curves])
    return flops_M[order_M], value_M[order_M], stderr_M[order_M]
