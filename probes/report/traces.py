"""Points as plotly traces: lines, bands of one standard error, smoothing and thinning of long curves.

Separate from the figures, which choose what is drawn. Names are escaped: plotly reads some HTML in them.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

from pretrain.track.legible import legible_count
from probes.report.axis import TokenAxis
from probes.report.curves import Point

_MOST_POINTS = 1500


def marked_line(
    points: Sequence[Point],
    axis: TokenAxis,
    *,
    name: str,
    colour: str,
    band: bool,
    on: str = "y",
    width: float = 2.0,
    dash: str = "solid",
) -> list[dict[str, Any]]:
    """A line with marks, over a band of ±1 standard error if wanted and known."""
    line = plain_line(points, axis, name=name, colour=colour, width=width, on=on)
    line |= {"mode": "lines+markers", "marker": {"size": 5, "color": colour}}
    line["line"]["dash"] = dash
    known = [point for point in points if point.stderr is not None]
    if not band or len(known) < 2:
        return [line]
    upper = [point.value + (point.stderr or 0.0) for point in known]
    lower = [point.value - (point.stderr or 0.0) for point in known]
    x = [axis.place(point.tokens) for point in known]
    shade = {
        "type": "scatter",
        "x": x + x[::-1],
        "y": upper + lower[::-1],
        "yaxis": on,
        "fill": "toself",
        "fillcolor": translucent(colour, 0.13),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }
    return [shade, line]


def plain_line(
    points: Sequence[Point], axis: TokenAxis, *, name: str, colour: str, width: float, on: str = "y"
) -> dict[str, Any]:
    """A line through points; hovering tells value, step and tokens."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(name),
        "x": [axis.place(point.tokens) for point in points],
        "y": [point.value for point in points],
        "yaxis": on,
        "customdata": [[f"{point.step:,}", legible_count(point.tokens)] for point in points],
        "line": {"color": colour, "width": width},
        "hovertemplate": "%{y:.4~g}",
    }


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Means over the rows within ±5 % of a row's position, at most ±100: a width that suits a logarithmic axis."""
    sums = [0.0, *itertools.accumulate(point.value for point in points)]
    smooth = []
    for index, point in enumerate(points):
        reach = min(int(0.05 * index), 100)
        low, high = index - reach, min(index + reach, len(points) - 1)
        mean = (sums[high + 1] - sums[low]) / (high + 1 - low)
        smooth.append(Point(step=point.step, tokens=point.tokens, value=mean, stderr=None))
    return smooth


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about 1,500 points, dense enough on a log axis and on a linear one."""
    last = len(points) - 1
    if last < _MOST_POINTS:
        return list(points)
    half = _MOST_POINTS // 2
    linear = {round(last * position / half) for position in range(half + 1)}
    logarithmic = {round(last ** (position / half)) for position in range(half + 1)}
    return [points[index] for index in sorted(linear | logarithmic | {0})]


def within(values: Sequence[float]) -> list[float]:
    """The values without the furthest 0.5 %: one spike must not flatten the curve."""
    ordered = sorted(values)
    cut = len(ordered) // 200
    return ordered[cut : len(ordered) - cut]


def translucent(colour: str, alpha: float) -> str:
    """A colour `#rrggbb` through which others are seen."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
