"""Draws `Fits`: a panel for each fit with its points, the law at their places with its interval, and the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from probes.curves.draw.canvas import Chart, count_axis, draw_prediction, finish, panels, value_axis
from probes.dynamics.fit_law import LawFit, quantiles
from probes.dynamics.laws import FLOPS, TOKENS
from probes.report.layout import INK, PALETTE

if TYPE_CHECKING:
    from probes.curves.fits import Fits
    from probes.dynamics.fit_table import Fitted
    from probes.dynamics.two_step import TwoStepFit

_BLUE = PALETTE[0]
_AXIS_NAMES = {TOKENS: "tokens (log)", FLOPS: "training FLOPs (log)"}


def draw_fits(fits: Fits, *, limit: int) -> Chart:
    """A panel for each fit that is not refused; what is refused is said below.

    Args:
        fits: the fits.
        limit: most panels.
    """
    good = [one for one in fits.records if one.fit is not None and not one.refused]
    figure, axes = panels(
        [_title(one) for one in good[:limit]], notes=fits.remarks(), shown=(len(good[:limit]), len(good))
    )
    handles: dict[str, Any] = {}
    for panel, one in zip(axes, good[:limit], strict=True):
        handles |= _draw_fit(panel, one, fits.level)
    finish(figure, handles, title="Fitted laws")
    return figure


def law_at(fit: LawFit | TwoStepFit, at: Mapping[str, float], level: float) -> tuple[float, float, float]:
    """What a fit says at a place, with the ends of its interval; nan for these without resampled fits."""
    value = float(fit.target.back(np.array([fit.law.value_at(fit.value_K, at)]))[0]) if isinstance(fit, LawFit) else 0.0
    step1 = fit if isinstance(fit, LawFit) else fit.step1
    ends = quantiles(fit.draws_at(at), level) if len(step1.draw_BK) else (float("nan"), float("nan"))
    return (value if isinstance(fit, LawFit) else fit.score(at), *ends)


def _title(one: Fitted) -> str:
    row = one.row
    of_whom = ", ".join(str(row[key]) for key in ("family", "run") if row.get(key))
    shots = f", {row['shots']}-shot" if row["shots"] is not None else ""
    return f"{row['task']} ({row['metric']}{shots})\n{row['law']}{': ' + of_whom if of_whom else ''}"


def _draw_fit(panel: Axes, one: Fitted, level: float) -> dict[str, Any]:
    assert one.fit is not None and one.points is not None, "a fit that is not refused has points"
    feature_R = one.points.feature_R
    axis = next(name for name in (FLOPS, TOKENS, *feature_R) if name in feature_R)
    count_axis(panel, _AXIS_NAMES.get(axis, f"{axis.replace('_', ' ')} (log)"))
    order_R = np.argsort(feature_R[axis], kind="stable")
    x_R = feature_R[axis][order_R]
    places = [{name: float(value_R[row]) for name, value_R in feature_R.items()} for row in order_R]
    law = np.array([law_at(one.fit, place, level) for place in places])
    (points,) = panel.plot(
        x_R, one.points.value_R[order_R], color=INK, marker="o", markersize=3.5, linestyle="none", zorder=4
    )
    (line,) = panel.plot(
        x_R, law[:, 0], color=_BLUE, marker="s", markersize=4, markerfacecolor="none", linewidth=0.9, zorder=3
    )
    band = panel.fill_between(x_R, law[:, 1], law[:, 2], color=_BLUE, alpha=0.18, linewidth=0, zorder=2)
    handles: dict[str, Any] = {
        "runs": points,
        f"law at the same places, {level:.0%} interval": (band, line),
    }
    predicted = one.row["predicted"]
    if one.at is not None and predicted is not None and axis in one.at:
        low, high = one.row[f"low_{level:.0%}"], one.row[f"high_{level:.0%}"]
        handles[f"prediction, {level:.0%} interval"] = draw_prediction(
            panel, one.at[axis], predicted, low=low, high=high
        )
    value_axis(panel, str(one.row["metric"]))
    return handles
