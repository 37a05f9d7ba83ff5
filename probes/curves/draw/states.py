"""Draws `States`: a panel for each judged score, what was expected of it with its band, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from probes.curves.draw.canvas import Chart, draw_chance, draw_curve, finish, panels, token_axis, value_axis
from probes.report.layout import INK, PALETTE

if TYPE_CHECKING:
    from probes.curves.states import States
    from probes.dynamics.expectation import Surprise
    from probes.dynamics.table import TaskCurve

_BLUE, _RED = PALETTE[:2]
_DEVIATIONS = 2.0
"""Half height of the band, in standard deviations: healthy scores are within nearly always."""


def draw_states(states: States, *, limit: int) -> Chart:
    """A panel for each task that is judged, by run and domain; verdicts and evidence stand below.

    Args:
        states: the states.
        limit: most panels.
    """
    judged = [
        (state, domain, task, curve)
        for state in states.records
        for domain in state.domains
        for task in domain.tasks
        if (curve := states.seen[state.run].get(state.run, task.series)) is not None
    ]
    figure, axes = panels(
        [
            f"{state.run}: {state.verdict}\n{task.series}\n{domain.domain}: {domain.verdict}"
            for state, domain, task, _ in judged[:limit]
        ],
        notes=states.remarks(),
        shown=(len(judged[:limit]), len(judged)),
    )
    handles: dict[str, Any] = {}
    for panel, (_, _, task, curve) in zip(axes, judged[:limit], strict=True):
        handles |= {name: mark for name, mark in _draw_task(panel, task, curve).items() if mark is not None}
    runs = ", ".join(f"{state.run} {state.verdict}" for state in states.records[:6])
    more = f" and {len(states) - 6} more" if len(states) > 6 else ""
    finish(figure, handles, title=f"State: {runs}{more}")
    return figure


def _draw_task(panel: Axes, task: Surprise, curve: TaskCurve) -> dict[str, Any]:
    axis = token_axis(panel, curve.tokens_C)
    seen = draw_curve(panel, axis, curve, color=INK, marker="o", markersize=2.5, linewidth=1.1, zorder=3)
    window_C = np.arange(len(curve)) >= len(curve) - task.window
    place = float(np.exp(np.mean(np.log([axis.place(tokens) for tokens in curve.tokens_C[window_C]]))))
    expected = panel.errorbar(
        [place],
        [task.expected],
        yerr=[[_DEVIATIONS * spread_of(task)], [_DEVIATIONS * spread_of(task)]],
        color=_BLUE,
        marker="s",
        markersize=5,
        markerfacecolor="none",
        capsize=4,
        linewidth=1.4,
        linestyle="none",
        zorder=4,
    )
    (latest,) = panel.plot([place], [task.seen], color=_RED, marker="D", markersize=5, linestyle="none", zorder=5)
    panel.annotate(
        f"{task.deviation:+.1f}",
        (place, task.seen),
        textcoords="offset points",
        xytext=(-6, -9),
        ha="right",
        fontsize=7,
        color=INK,
    )
    value_axis(panel, curve.metric)
    return {
        "scores": seen,
        f"expected, band of {_DEVIATIONS:g} standard deviations": expected,
        "seen: mean of the last one to three, with its deviation": latest,
        "guessing": draw_chance(panel, curve.chance),
    }


def spread_of(task: Surprise) -> float:
    """One standard deviation of what was expected, in the metric's unit; 0 for a score that was exactly expected."""
    return abs((task.seen - task.expected) / task.deviation) if task.deviation else 0.0
