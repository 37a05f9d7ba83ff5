"""Draws a `Comparison`: a panel for each score with the curves of all runs, and how alike the runs are as a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from probes.curves.draw.canvas import (
    Chart,
    count_axis,
    finish,
    label_axis,
    look_of,
    panels,
    token_axis,
    value_axis,
)
from probes.dynamics.align import positions
from probes.report.layout import INK

if TYPE_CHECKING:
    from probes.curves.comparison import Comparison
    from probes.dynamics.table import TaskCurve

_AXIS_NAMES = {"tokens_per_parameter": "tokens per parameter (log)", "flops": "training FLOPs (log)"}
_MOST_WRITTEN = 12
"""Runs up to which the matrix has its numbers written in."""


def draw_comparison(compared: Comparison, *, limit: int) -> Chart:
    """The most alike scores first, then those that cannot be compared across sizes; the matrix is the last panel.

    Args:
        compared: the comparison.
        limit: most panels, the matrix not counted.
    """
    alike = {one.series: f"similarity {one.similarity:.2f}, {one.words}" for one in compared.records}
    order = [*alike, *(one for one in compared.series if one not in alike)]
    names = [f"{one}\n{alike.get(one, 'no similarity across sizes')}" for one in order[:limit]]
    matrix = len(compared.runs) > 1
    figure, axes = panels(
        [*names, *(["Similarity of runs\nmean over scores, 1 for equal curves"] if matrix else [])],
        notes=compared.remarks(),
        shown=(len(names), len(order)),
    )
    handles: dict[str, Any] = {}
    for panel, series in zip(axes, order[:limit], strict=False):
        curves = [(row, curve) for row, name in enumerate(compared.runs) if (curve := compared.table.get(name, series))]
        places = _axis(panel, compared, [curve for _, curve in curves])
        for (row, curve), place_C in zip(curves, places, strict=True):
            (handles[curve.run],) = panel.plot(place_C, curve.value_C, **look_of(row))
        value_axis(panel, series.metric)
    if matrix and axes:
        _draw_matrix(axes[-1], compared.matrix(), compared.runs)
    finish(figure, {name: handles.get(name) for name in compared.runs}, title=f"Runs compared, by {compared.axis}")
    return figure


def _axis(panel: Axes, compared: Comparison, curves: list[TaskCurve]) -> list[np.ndarray]:
    """Makes the x axis the one that the runs are aligned by; where the checkpoints of each curve lie on it."""
    if compared.axis == "tokens":
        axis = token_axis(panel, [tokens for curve in curves for tokens in curve.tokens_C])
        return [np.array([axis.place(tokens) for tokens in curve.tokens_C]) for curve in curves]
    places = [positions(compared.table, curve, axis=compared.axis, loss=compared.loss) for curve in curves]
    if compared.axis == "loss":
        label_axis(panel, x="loss (lower is to the right)")
        panel.invert_xaxis()
        return [-place_C for place_C in places]
    count_axis(panel, _AXIS_NAMES[compared.axis])
    # Untrained models have no place on a logarithmic axis.
    return [
        np.where(curve.tokens_C > 0, np.exp(place_C), np.nan) for place_C, curve in zip(places, curves, strict=True)
    ]


def _draw_matrix(panel: Axes, alike_NN: np.ndarray, runs: list[str]) -> None:
    panel.grid(False)
    known = alike_NN[np.isfinite(alike_NN)]
    low = min(float(known.min()), 0.5)
    image = panel.imshow(alike_NN, cmap="cividis", vmin=low, vmax=1.0)
    panel.set_xticks(range(len(runs)), runs, rotation=60, ha="right")
    panel.set_yticks(range(len(runs)), runs)
    bar = panel.figure.colorbar(image, ax=panel, fraction=0.046)
    bar.ax.tick_params(labelsize=7)
    if len(runs) <= _MOST_WRITTEN:
        for row, column in np.ndindex(alike_NN.shape):
            value = alike_NN[row, column]
            dark = np.isfinite(value) and value < (low + 1.0) / 2
            text = f"{value:.2f}" if np.isfinite(value) else "–"
            panel.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else INK)
