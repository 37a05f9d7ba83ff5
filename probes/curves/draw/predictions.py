"""Draws `Predictions`: a panel for each score, the curve so far, the prediction with its interval, the references."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes

from probes.curves.draw.canvas import (
    Chart,
    draw_chance,
    draw_curve,
    draw_prediction,
    finish,
    panels,
    token_axis,
    value_axis,
)
from probes.dynamics.predict import LEVEL, Prediction
from probes.dynamics.references import family_references
from probes.report.layout import INK, MUTED, PALETTE

if TYPE_CHECKING:
    from probes.curves.predictions import Predictions
    from probes.dynamics.siblings import UnseenTask
    from probes.dynamics.table import TaskCurve

_BLUE, _RED = PALETTE[:2]


def draw_predictions(found: Predictions, *, limit: int) -> Chart:
    """A panel for each prediction that is not refused; what is refused is said below.

    Args:
        found: the predictions.
        limit: most panels.
    """

    @cache
    def references(run: str) -> Sequence[str]:
        """What the run was held against."""
        if found.references is not None:
            return found.references
        return family_references(found.seen[run], run).names if run in found.seen else list(found.table.runs)

    made = [one for one in found.records if not one.refused]
    figure, axes = panels(
        [f"{one.run}\n{one.series}" for one in made[:limit]],
        notes=found.remarks(),
        shown=(len(made[:limit]), len(made)),
    )
    handles: dict[str, Any] = {}
    for panel, one in zip(axes, made[:limit], strict=True):
        others = [
            curve
            for name in references(one.run)
            if name != one.run and (curve := found.table.get(name, one.series)) is not None
        ]
        if isinstance(one, Prediction):
            marks = _draw_final(panel, found, one, others)
        else:
            marks = _draw_unseen(panel, found, one, others)
        handles |= {name: mark for name, mark in marks.items() if mark is not None}
        value_axis(panel, one.series.metric)
    finish(figure, handles, title="Predicted scores")
    return figure


def _draw_final(panel: Axes, found: Predictions, one: Prediction, others: Sequence[TaskCurve]) -> dict[str, Any]:
    curve = found.seen[one.run].get(one.run, one.series)
    shown = [*others, *([curve] if curve is not None else [])]
    axis = token_axis(panel, [one.tokens, *(tokens for each in shown for tokens in each.tokens_C)])
    handles = _faint(panel, axis, others)
    if curve is not None:
        handles["scores so far"] = draw_curve(
            panel, axis, curve, color=INK, marker="o", markersize=2.5, linewidth=1.2, zorder=4
        )
    place = axis.place(one.tokens)
    handles[f"prediction, {LEVEL:.0%} interval"] = draw_prediction(panel, place, one.value, low=one.low, high=one.high)
    came = found.came(one)
    if came is not None:
        handles["score that came"] = panel.plot(
            [place], [came], color=_BLUE, marker="s", markersize=6, markerfacecolor="none", linestyle="none", zorder=6
        )[0]
    if curve is not None:
        handles["guessing"] = draw_chance(panel, curve.chance)
    return handles


def _draw_unseen(panel: Axes, found: Predictions, one: UnseenTask, others: Sequence[TaskCurve]) -> dict[str, Any]:
    measured = found.table.get(one.run, one.series)
    shown = [*others, *([measured] if measured is not None else [])]
    axis = token_axis(panel, [*one.tokens_Q, *(tokens for each in shown for tokens in each.tokens_C)])
    handles = _faint(panel, axis, others)
    places = [axis.place(tokens) for tokens in one.tokens_Q]
    band = panel.fill_between(places, one.low_Q, one.high_Q, color=_RED, alpha=0.25, linewidth=0, zorder=3)
    (line,) = panel.plot(places, one.value_Q, color=_RED, marker="D", markersize=3, linewidth=1.4, zorder=5)
    handles[f"prediction, {LEVEL:.0%} interval"] = (band, line)
    if measured is not None:
        handles["scores that were hidden"] = draw_curve(
            panel, axis, measured, color=_BLUE, marker="s", markersize=3, markerfacecolor="none", linewidth=1.0
        )
    return handles


def _faint(panel: Axes, axis: Any, others: Sequence[TaskCurve]) -> dict[str, Any]:
    """The references behind everything else."""
    drawn = [draw_curve(panel, axis, curve, color=MUTED, linestyle="--", linewidth=0.8, alpha=0.6) for curve in others]
    return {"references": drawn[0]} if drawn else {}
