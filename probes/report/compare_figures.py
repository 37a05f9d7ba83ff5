"""The curves of a comparison, as plain plotly specifications: small multiples whose x axis can be switched.

Runs differ in colour (Okabe and Ito's), dash and marker, so that they are told apart without colour, too. Where there
are many, the others are drawn thin and grey, in one trace. `compare_intervals.py` draws predictions and onsets.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.dynamics.noise import smooth
from probes.dynamics.table import CurveTable, TaskCurve
from probes.report.compare_curves import Axis, Panel, thinned
from probes.report.figures import Figure
from probes.report.layout import MUTED, PALETTE, base_layout, y_axis
from probes.report.layout import Panel as Area
from probes.report.traces import translucent

OTHERS = "other runs"
AT_CHANCE = "nothing to be trusted yet"
OTHER_COLOUR = "#c3cad2"
_DASHES = ("solid", "dash", "dot", "dashdot")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x")
_MOST_BANDS = 4
_MOST_MARKS = 40
_SMOOTHED_POINTS = 100  # smoothing takes their square in time and memory
_LINE_POINTS, _OTHER_POINTS = 100, 20
_HEIGHT = 252


@dataclass(frozen=True, slots=True)
class Style:
    """How a run is drawn everywhere on the page."""

    colour: str
    dash: str
    marker: str


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A trace without its x, and the curves at whose checkpoints its points lie: one after the other, or with gaps."""

    trace: dict[str, Any]
    curves: Sequence[TaskCurve]
    gaps: bool = False

    def x(self, table: CurveTable, axis: Axis) -> list[float | None]:
        return joined([axis.place(table, curve) for curve in self.curves], gaps=self.gaps, digits=5)


def styles_of(runs: Sequence[str]) -> dict[str, Style]:
    """A style for each run; twenty-eight pairs of colour and dash before one comes again."""
    return {
        run: Style(PALETTE[place % len(PALETTE)], _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)])
        for place, run in enumerate(runs)
    }


def domain_figures(
    table: CurveTable, panels: Sequence[Panel], axes: Sequence[Axis], styles: Mapping[str, Style], *, unit: str = ""
) -> list[Figure]:
    """A small figure for each domain; its x axis can be switched between the axes, whose ranges all figures share.

    Args:
        table: has what the axes need.
        panels: the means to draw.
        axes: the first is drawn at first.
        styles: of the runs that stand out.
        unit: shown beside each heading; of a domain that tells nothing yet, that.
    """
    curves = [curve for panel in panels for curve in panel.means]
    layouts = {axis.key: _layout_of(table, curves, axis) for axis in axes}
    return [
        _curves_figure(table, panel, axes, styles, layouts=layouts, unit=unit if panel.is_telling else AT_CHANCE)
        for panel in panels
    ]


def alignment_figures(
    table: CurveTable, means: Sequence[TaskCurve], axes: Sequence[Axis], styles: Mapping[str, Style]
) -> list[Figure]:
    """The same curves over each of the axes, side by side: on the one that aligns the runs they fall together."""
    figures = []
    for axis in axes if means else ():
        panel = Panel(domain=f"Over {axis.title}", tasks=(), means=means)
        layouts = {axis.key: _layout_of(table, means, axis)}
        figures.append(_curves_figure(table, panel, [axis], styles, layouts=layouts, unit=""))
    return figures


def x_layout(key: str, title: str, span: tuple[float, float]) -> dict[str, Any]:
    """The x axis of one of the axes; a loss falls from left to right."""
    low, high = span
    common = {
        "title": {"text": html.escape(title), "standoff": 6, "font": {"size": 12, "color": MUTED}},
        "showgrid": False,
        "zeroline": False,
        "tickangle": 0,
        "ticks": "outside",
        "ticklen": 5,
        "tickcolor": MUTED,
        "linecolor": MUTED,
        "showline": True,
        "nticks": 6,
    }
    if key == "loss":
        margin = 0.03 * (high - low) or 0.05 * abs(high) or 1.0
        return common | {"type": "linear", "range": [round(high + margin, 4), round(low - margin, 4)]}
    ends = np.log10([low, high])
    margin = 0.03 * float(ends[1] - ends[0]) or 0.1
    ticks = {"dtick": 1} if ends[1] - ends[0] > 2.2 else {}
    style = {"exponentformat": "power" if key == "flops" else "B", "minexponent": 3}
    return common | ticks | style | {"type": "log", "range": np.round([ends[0] - margin, ends[1] + margin], 4).tolist()}


def joined(parts: Sequence[np.ndarray], *, gaps: bool = False, digits: int = 4) -> list[float | None]:
    """Numbers for a page, to so many digits; None for what is not finite, and between the parts if there are gaps."""
    found: list[float | None] = []
    for part in parts:
        if gaps and found:
            found.append(None)
        found += [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in part.tolist()]
    return found


def _curves_figure(
    table: CurveTable,
    panel: Panel,
    axes: Sequence[Axis],
    styles: Mapping[str, Style],
    *,
    layouts: Mapping[str, dict[str, Any]],
    unit: str,
) -> Figure:
    others = [_thin(curve, _OTHER_POINTS) for curve in panel.means if curve.run not in styles]
    shown = [curve for curve in panel.means if curve.run in styles]
    drawn = [_others(others)] if others else []
    for curve in shown:
        drawn += _run(curve, styles[curve.run], band=len(shown) <= _MOST_BANDS)
    places = {axis.key: [one.x(table, axis) for one in drawn] for axis in axes}
    first = axes[0].key
    area = Area(height_pixels=_HEIGHT - 54)
    value_range = _value_range([curve.value_C for curve in panel.means])
    return Figure(
        title=panel.domain,
        unit=unit,
        description=_described(panel, shown, num_others=len(others)),
        data=[one.trace | {"x": x} for one, x in zip(drawn, places[first], strict=True)],
        layout=base_layout(None, annotations=[], height=_HEIGHT)
        | {
            "xaxis": layouts[first],
            "yaxis": y_axis(value_range, panel=area) | {"zeroline": True, "zerolinecolor": MUTED, "zerolinewidth": 1},
            "hovermode": "closest",
        },
        places={axis.key: {"xaxis": layouts[axis.key], "x": places[axis.key]} for axis in axes[1:]} or None,
    )


def _run(curve: TaskCurve, style: Style, *, band: bool) -> list[_Drawn]:
    """The smoothed curve of a run, its band, and the scores it is drawn through."""
    curve = _thin(curve, _SMOOTHED_POINTS)
    smoothed = smooth(curve)
    kept = thinned(curve, _LINE_POINTS)
    thin = curve.where(kept)
    name = html.escape(curve.run)
    common = {"type": "scatter", "name": name, "legendgroup": curve.run}
    drawn = []
    if band and np.isfinite(smoothed.low_C).all():
        shade = common | {
            "mode": "lines",
            "y": joined([smoothed.high_C[kept], smoothed.low_C[kept][::-1]]),
            "fill": "toself",
            "fillcolor": translucent(style.colour, 0.13),
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
        drawn.append(_Drawn(shade, [thin, thin.where(np.arange(len(thin))[::-1])]))
    if len(curve) <= _MOST_MARKS:
        marks = common | {
            "mode": "markers",
            "y": joined([curve.value_C]),
            "marker": {"size": 4, "color": style.colour, "symbol": style.marker, "opacity": 0.4},
            "hoverinfo": "skip",
        }
        drawn.append(_Drawn(marks, [curve]))
    line = common | {
        "mode": "lines",
        "y": joined([smoothed.value_C[kept]]),
        "line": {"color": style.colour, "width": 2.2, "dash": style.dash},
        "hovertemplate": f"{name}<br>%{{x:.3~s}}: %{{y:.3f}}<extra></extra>",
    }
    return [*drawn, _Drawn(line, [thin])]


def _others(curves: Sequence[TaskCurve]) -> _Drawn:
    trace = {
        "type": "scatter",
        "name": OTHERS,
        "legendgroup": OTHERS,
        "mode": "lines",
        "y": joined([curve.value_C for curve in curves], gaps=True),
        "line": {"color": OTHER_COLOUR, "width": 0.8},
        "hoverinfo": "skip",
    }
    return _Drawn(trace, curves, gaps=True)


def _thin(curve: TaskCurve, most: int) -> TaskCurve:
    return curve.where(thinned(curve, most))


def _layout_of(table: CurveTable, curves: Sequence[TaskCurve], axis: Axis) -> dict[str, Any]:
    """The axis over all checkpoints of these curves; every placement rises or falls, so their ends are enough."""
    placed = [axis.place(table, curve) for curve in curves]
    known = [one[np.isfinite(one)] for one in placed]
    ends = [value for one in known if len(one) for value in (float(one[0]), float(one[-1]))]
    return x_layout(axis.key, axis.title, (min(ends), max(ends)) if ends else (1.0, 10.0))


def _value_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _described(panel: Panel, shown: Sequence[TaskCurve], *, num_others: int) -> str:
    """The figure in words."""
    tasks = f", the mean of {', '.join(panel.tasks[:6])}" if panel.tasks else ""
    more = f" and {len(panel.tasks) - 6} more" if len(panel.tasks) > 6 else ""
    ends = "; ".join(f"{curve.run} from {curve.value_C[0]:.3g} to {curve.value_C[-1]:.3g}" for curve in shown)
    others = f"; {num_others} other runs in grey" if num_others else ""
    return f"{panel.domain}{tasks}{more}: {ends}{others}."
