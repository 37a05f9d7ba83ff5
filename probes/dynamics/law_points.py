"""Points for scaling laws, taken from a table of curves: one a run, where it ended.

A point is the mean of a run's last checkpoints at its last position, as the OLMo ladder takes it. Points along one
run are for `probes.dynamics.single_run` and `annealing`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.laws import FLOPS, PARAMETERS, TOKENS
from probes.dynamics.table import CurveTable, Series, TaskCurve

LAST_CHECKPOINTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Points:
    """What a law is fitted to; R points.

    Attributes:
        feature_R: by name, positive (areas of annealing may be 0).
        value_R: scores or losses, in their own units.
        group_R: int; points of one group are resampled together (all points of a run, or a stretch of one).
    """

    feature_R: Mapping[str, np.ndarray]
    value_R: np.ndarray
    group_R: np.ndarray

    def __len__(self) -> int:
        return len(self.value_R)

    def where(self, keep_R: np.ndarray) -> Points:
        """The points for which a boolean array holds."""
        return Points(
            feature_R={name: value_R[keep_R] for name, value_R in self.feature_R.items()},
            value_R=self.value_R[keep_R],
            group_R=self.group_R[keep_R],
        )


def finished_curves(table: CurveTable, series: Series, runs: Collection[str] | None = None) -> list[TaskCurve]:
    """The curves of finished runs of known size, smallest run first."""
    return [
        curve
        for curve in table.of_series(series, runs)
        if table.runs[curve.run].parameters and table.is_finished(curve.run)
    ]


def final_points(
    table: CurveTable, series: Series, *, runs: Collection[str] | None = None, last: int = LAST_CHECKPOINTS
) -> Points:
    """One point for each finished run with this series: parameters, tokens, FLOPs and the mean of the last checkpoints.

    Args:
        table: runs without parameters are passed over, as are those that have not reached their planned end: their
            learning rate has not fallen yet, and they would look worse than they are.
        series: what was measured.
        runs: of these alone.
        last: checkpoints in the mean; all of a run that has fewer.

    Raises:
        ProbeError: no run is left.
    """
    curves = finished_curves(table, series, runs)
    if not curves:
        raise ProbeError(
            f"No finished run with known parameters has scores of {series}. A scaling law needs such runs of three "
            f"sizes and three lengths; tell parameters in a column, or by --runs FILE."
        )
    facts = [table.runs[curve.run] for curve in curves]
    tokens_R = np.array([curve.tokens_C[-1] for curve in curves])
    return Points(
        feature_R={
            PARAMETERS: np.array([float(fact.parameters or 0.0) for fact in facts]),
            TOKENS: tokens_R,
            FLOPS: np.array([float(fact.flops(tokens)) for fact, tokens in zip(facts, tokens_R, strict=True)]),
        },
        value_R=np.array([curve.value_C[-last:].mean() for curve in curves]),
        group_R=np.arange(len(curves)),
    )


def place(parameters: float, tokens: float, *, flops_per_token: float | None = None) -> dict[str, float]:
    """Where to predict: all features a law between runs may need; 6 N FLOPs a token unless told."""
    return {PARAMETERS: parameters, TOKENS: tokens, FLOPS: (flops_per_token or 6.0 * parameters) * tokens}
