"""What several runs tell of a task: whether it orders them, early as late, and whether they differ by more than noise.

The definitions are those of `probes.dynamics.definitions`; here they are applied to a table, at equal tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.dynamics.align import common_points
from probes.dynamics.definitions import (
    FINETASKS_SINCE_TOKENS,
    decision_accuracy,
    is_non_random,
    ordering_consistency,
    signal_to_noise,
)
from probes.dynamics.noise import judged_value, log_tokens, noise_of
from probes.dynamics.table import CurveTable, Series, TaskCurve

_LAST = 5
"""Checkpoints at the end that are averaged: Signal & Noise's for small models."""
_WINDOW = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordering:
    """What the runs that were measured on one series tell of it.

    Attributes:
        series: task, metric and number of examples in the prompt.
        domain: its domain.
        runs: the runs compared, by size.
        ordering_consistency: FineTasks' mean Kendall τ between neighbouring checkpoints; nan below two.
        early_tokens: where the early decision is taken.
        decision_accuracy: DataDecide's share of pairs of runs whose order then is that at the end of the common tokens.
        signal_to_noise: Signal & Noise's, of the runs' last scores over the largest run's last checkpoints.
        is_non_random: FineTasks', with checkpoint noise for the deviation between seeds; None where guessing means
            nothing.
    """

    series: Series
    domain: str
    runs: tuple[str, ...]
    ordering_consistency: float
    early_tokens: float
    decision_accuracy: float
    signal_to_noise: float
    is_non_random: bool | None


def compare_orders(
    table: CurveTable,
    *,
    runs: Sequence[str] | None = None,
    since_tokens: float | None = None,
    early_tokens: float | None = None,
) -> list[Ordering]:
    """One `Ordering` for each series that two runs or more were measured on.

    Args:
        table: the curves.
        runs: all unless named.
        since_tokens: order is looked at from here on; FineTasks' 15B tokens, or a twentieth of the common tokens if
            that is less.
        early_tokens: where the early decision is taken; a quarter of the common tokens unless given.
    """
    found = []
    for series in table.series():
        curves = table.of_series(series, runs)
        if len(curves) >= 2:
            ordering = _compare(series, curves, since_tokens, early_tokens)
            if ordering is not None:
                found.append(ordering)
    return found


def _compare(
    series: Series, curves: Sequence[TaskCurve], since_tokens: float | None, early_tokens: float | None
) -> Ordering | None:
    points_P, matrices = common_points([log_tokens(curve.tokens_C) for curve in curves])
    if len(points_P) < 2:
        return None
    tokens_P = np.exp(points_P)
    end = float(tokens_P[-1])
    since = min(FINETASKS_SINCE_TOKENS, end / 20.0) if since_tokens is None else since_tokens
    early = end / 4.0 if early_tokens is None else early_tokens
    value_RP = np.stack([matrix @ judged_value(curve) for matrix, curve in zip(matrices, curves, strict=True)])
    late_RP = value_RP[:, tokens_P >= since * (1 - 1e-9)]
    until_RP = value_RP[:, tokens_P <= early * (1 + 1e-9)][:, -_WINDOW:]
    plain_R = np.array([float(np.mean(curve.value_C[-_LAST:])) for curve in curves])
    chance = curves[0].chance
    best = max(curves, key=lambda curve: float(np.mean(judged_value(curve)[-_LAST:])))
    return Ordering(
        series=series,
        domain=curves[0].domain,
        runs=tuple(curve.run for curve in curves),
        ordering_consistency=ordering_consistency(late_RP) if late_RP.shape[1] > 1 else float("nan"),
        early_tokens=early,
        decision_accuracy=decision_accuracy(until_RP.mean(axis=1), value_RP[:, -_WINDOW:].mean(axis=1))
        if until_RP.shape[1]
        else float("nan"),
        signal_to_noise=signal_to_noise(plain_R, curves[-1].value_C[-_LAST:]),
        is_non_random=is_non_random(plain_R, chance=chance, deviation=noise_of(best)) if np.isfinite(chance) else None,
    )
