"""How every figure of the report looks: colours, margins, axes, and labels at the ends of curves.

Separate from the figures so that they only say what they show. Labels are spread here, in Python, since
plotly does not keep annotations from covering each other.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probes.report.axis import TokenAxis

# Okabe and Ito, https://jfly.uni-koeln.de/color/, in an order that puts the most legible on white first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00")
INK = "#1f2933"
MUTED = "#7b8794"
_GRID = "#e4e7eb"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LABEL_HEIGHT_PIXELS = 16
_CHARACTER_WIDTH_PIXELS = 7.6  # Of bold DejaVu Sans, the widest of the fonts, at 12.5 pixels


@dataclass(frozen=True, slots=True)
class Label:
    """A name at the end of a curve."""

    text: str
    value: float
    colour: str
    bold: bool = False
    mark: str = "●"


@dataclass(frozen=True, slots=True)
class Panel:
    """One plotting area of a figure.

    Attributes:
        height_pixels: height of the area.
        domain: share of the figure's height it takes, from below.
        axis: plotly's name of its y axis.
    """

    height_pixels: int
    domain: tuple[float, float] = (0.0, 1.0)
    axis: str = "y"


def base_layout(
    axis: TokenAxis | None, *, annotations: Sequence[dict[str, Any]], height: int = 272, below: str = "y"
) -> dict[str, Any]:
    """The layout all figures start from.

    Args:
        axis: the token axis; None for a figure without one.
        annotations: labels; the right margin is made wide enough for those beside the plot.
        height: of the figure, in pixels.
        below: the y axis under which the token axis is drawn.
    """
    outside = [note for note in annotations if note.get("xanchor") == "left" and note.get("x") == 1]
    longest = max((len(html.unescape(note["name"])) for note in outside), default=0)
    right = min(178, 34 + round(_CHARACTER_WIDTH_PIXELS * longest)) if outside else 14
    layout: dict[str, Any] = {
        "height": height,
        "autosize": True,
        "margin": {
            "l": 46,
            "r": right,
            "t": 30 if any(note.get("yref") == "paper" for note in annotations) else 10,
            "b": 44,
        },
        "font": {"family": _FONT, "size": 12.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": "#cbd2d9", "font": {"family": _FONT, "size": 12.5}},
        "annotations": list(annotations),
    }
    if axis is not None:
        layout["xaxis"] = axis.layout() | {
            "title": {"text": "tokens", "standoff": 6, "font": {"size": 12, "color": MUTED}},
            "anchor": below,
            "showgrid": False,
            "zeroline": False,
            "tickangle": 0,
            "ticks": "outside",
            "ticklen": 5,
            "tickcolor": MUTED,
            "linecolor": MUTED,
            "showline": True,
            "unifiedhovertitle": {"text": "step %{customdata[0]}, %{customdata[1]} tokens"},
        }
    return layout


def y_axis(value_range: tuple[float, float], *, panel: Panel) -> dict[str, Any]:
    """A value axis with a light grid; its range is fixed, since the labels are placed by it."""
    return {
        "range": list(value_range),
        "domain": list(panel.domain),
        "gridcolor": _GRID,
        "zeroline": False,
        "nticks": 6,
        "tickfont": {"size": 12},
        "exponentformat": "SI" if value_range[1] >= 1000 else "power",
        "ticks": "",
        "ticklabelstandoff": 6,
        "automargin": "width+left",
    }


def panel_title(text: str, panel: Panel) -> dict[str, Any]:
    """A heading at the upper left of one panel of several."""
    return {
        "text": f"<b>{html.escape(text)}</b>",
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "yref": "paper",
        "y": panel.domain[1],
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12.5},
    }


def end_labels(labels: Sequence[Label], *, value_range: tuple[float, float], panel: Panel) -> list[dict[str, Any]]:
    """Names right of the plot, at the height of the curves' ends, moved apart where they would touch.

    Args:
        labels: names and last values.
        value_range: range of the y axis.
        panel: where the curves are; gives the height of a line of text in units of the axis.
    """
    low, high = value_range
    distance = (high - low) * _LABEL_HEIGHT_PIXELS / panel.height_pixels
    ordered = sorted(labels, key=lambda label: label.value)
    places = _spread([label.value for label in ordered], distance=distance, low=low, high=high)
    return [
        {
            "name": html.escape(label.text),
            "text": _marked(label),
            "xref": "paper",
            "x": 1,
            "xanchor": "left",
            "xshift": 5,
            "yref": panel.axis,
            "y": place,
            "yanchor": "middle",
            "showarrow": False,
            "align": "left",
            "font": {"size": 12.5, "color": INK},
        }
        for label, place in zip(ordered, places, strict=True)
    ]


def _marked(label: Label) -> str:
    """A dot in the curve's colour, and the name in ink: the palette is too light for small text on white."""
    name = html.escape(label.text if len(label.text) <= 20 else label.text[:19] + "…")
    return f'<span style="color:{label.colour}">{label.mark}</span> ' + (f"<b>{name}</b>" if label.bold else name)


def _spread(values: Sequence[float], *, distance: float, low: float, high: float) -> list[float]:
    """Ascending places at least `distance` apart, near the values and inside the range: touching labels are centred."""
    pools: list[list[float]] = []  # Of each pool: the sum of its members' wishes for its first place, their number.
    for value in values:
        pools.append([value, 1.0])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] + pools[-2][1] * distance > pools[-1][0] / pools[-1][1]:
            wishes, count = pools.pop()
            before = pools[-1][1]
            pools[-1] = [pools[-1][0] + wishes - count * before * distance, before + count]
    places = [total / count + position * distance for total, count in pools for position in range(int(count))]
    most = len(places) - 1  # Each place leaves room for the labels on its far side, so clamping keeps the distances.
    below = [min(place, high - (most - position) * distance) for position, place in enumerate(places)]
    return [max(place, low + position * distance) for position, place in enumerate(below)]
