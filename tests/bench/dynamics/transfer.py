"""Whole curves of Pythia 6.9B and 12B from runs of at most 1.4B: mean absolute error over six tasks and four sets.

Baselines: the curve of the largest small run as it is, and at each checkpoint a line in log N through the small runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probes.dynamics.surface import fit_surfaces
from probes.dynamics.table import CurveTable, Series, TaskCurve
from tests.bench.dynamics.sets import markdown, mean, sets, sizes

FROM_STEP, LATE_STEP = 1_000, 13_000
_SMALL_BELOW, _LARGE_ABOVE = 2e9, 5e9
_HALF_WIDTH_80 = 1.2815515655446004


def figures(*, quick: bool) -> dict[str, Any]:
    """Errors of each set at all checkpoints and at the late ones, ratios, and how many scores the 80% bands held."""
    by_set: dict[str, dict[str, float]] = {}
    inside: list[float] = []
    for name, whole, tasks in sets():
        small, large = sizes(whole, below=_SMALL_BELOW), sizes(whole, above=_LARGE_ABOVE)
        surfaces = fit_surfaces(whole.select(runs=small), runs=small, series=tasks)
        errors: dict[str, list[float]] = {}
        for run in large:
            for one in tasks:
                curve = _curve(whole, run, one).since_step(FROM_STEP)
                parameters = whole.runs[run].parameters
                assert parameters is not None
                band = surfaces[one].predict(parameters=parameters, tokens_Q=curve.tokens_C)
                guesses = {
                    "predicted": band.mean_Q,
                    "line_in_size": _line_in_size(whole, small, one, curve, parameters),
                    "nearest_size": np.interp(
                        curve.tokens_C, *(lambda c: (c.tokens_C, c.value_C))(_curve(whole, small[-1], one))
                    ),
                }
                late_C = curve.step_C >= LATE_STEP
                for method, guess_C in guesses.items():
                    off_C = np.abs(guess_C - curve.value_C)
                    errors.setdefault(method, []).append(float(off_C.mean()))
                    errors.setdefault(method + "_late", []).append(float(off_C[late_C].mean()))
                off_C = np.abs(band.mean_Q - curve.value_C)
                inside += list(off_C <= _HALF_WIDTH_80 * band.score_deviation_Q)
        by_set[name] = {method: mean(values) for method, values in errors.items()}
    means = {method: mean([found[method] for found in by_set.values()]) for method in next(iter(by_set.values()))}
    return {
        "by_set": by_set,
        "mean": means,
        "size_transfer_ratio": means["predicted"] / means["line_in_size"],
        "size_transfer_ratio_late": means["predicted_late"] / means["line_in_size_late"],
        "largest_ratio_of_a_set": max(
            found["predicted" + part] / found["line_in_size" + part]
            for found in by_set.values()
            for part in ("", "_late")
        ),
        "coverage_80": mean(inside),
    }


def table(figures: Mapping[str, Any]) -> str:
    """One row for each set, and the mean."""
    rows = [
        [name, found["nearest_size"], found["line_in_size"], found["predicted"]]
        for name, found in [*figures["by_set"].items(), ("mean", figures["mean"])]
    ]
    return markdown(["Pythia ≤ 1.4B → 6.9B and 12B", "curve of 1.4B", "line in log N at each step", "predicted"], rows)


def _line_in_size(
    whole: CurveTable, small: list[str], series: Series, curve: TaskCurve, parameters: float
) -> np.ndarray:
    size_R = np.log([whole.runs[run].parameters or 1.0 for run in small])
    value_RC = np.array(
        [np.interp(curve.tokens_C, c.tokens_C, c.value_C) for c in (_curve(whole, r, series) for r in small)]
    )
    slope_C, offset_C = np.polyfit(size_R, value_RC, 1)
    return np.asarray(slope_C * np.log(parameters) + offset_C)


def _curve(whole: CurveTable, run: str, series: Series) -> TaskCurve:
    curve = whole.get(run, series)
    assert curve is not None
    return curve
