"""Values with intervals in a comparison: predicted finals beside what came, and when abilities arose.

The row types are what analyses hand over (`compare_analysis.py`); figures are plain plotly specifications.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.track.legible import legible_count
from probes.report.compare_figures import Style, x_layout
from probes.report.figures import Figure
from probes.report.layout import INK, base_layout

_ROW_PIXELS = 26
_DEFAULT = Style(INK, "solid", "circle")
_HOLLOW = "diamond-open"


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionRow:
    """A final score, predicted.

    Attributes:
        run: the run.
        label: the task.
        metric: what of it is predicted.
        at_tokens: what had been seen when it was predicted.
        value: the prediction; None if refused.
        low: lower end of the 80% interval; None if refused.
        high: its upper end; None if refused.
        came: the score that came; None if the run is not there yet.
        method: how it was predicted.
        refused: why nothing is predicted; empty if something is.
    """

    run: str
    label: str
    metric: str
    at_tokens: float
    value: float | None
    low: float | None
    high: float | None
    came: float | None
    method: str
    refused: str = ""

    @property
    def is_inside(self) -> bool | None:
        """Whether what came lies in the interval; None where either is missing."""
        if self.came is None or self.low is None or self.high is None:
            return None
        return self.low <= self.came <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class OnsetRow:
    """When a domain or task left chance in one run.

    Attributes:
        run: the run.
        label: domain or task.
        tokens: of the onset; None if there was none.
        low: earliest tokens of the interval; None where unknown.
        high: latest.
        saturated_tokens: where growth ended; None if it did not.
        note: what else is to be said, in words.
    """

    run: str
    label: str
    tokens: float | None
    low: float | None
    high: float | None
    saturated_tokens: float | None = None
    note: str = ""


def prediction_figures(rows: Sequence[PredictionRow], styles: Mapping[str, Style]) -> list[Figure]:
    """A figure for each run with predictions: dots with their intervals, and hollow diamonds for what came."""
    figures = []
    for run in dict.fromkeys(row.run for row in rows):
        told = [row for row in rows if row.run == run and row.value is not None]
        if told:
            figures.append(_prediction_figure(run, told, styles.get(run, _DEFAULT)))
    return figures


def onset_figure(rows: Sequence[OnsetRow], styles: Mapping[str, Style], *, title: str) -> Figure | None:
    """A row for each domain or task, earliest first, in it a bar for each run; None without onsets."""
    told = [row for row in rows if row.tokens is not None and row.run in styles]
    if not told:
        return None
    first: dict[str, float] = {}
    for row in told:
        first[row.label] = min(first.get(row.label, float("inf")), row.tokens or 0.0)
    labels = sorted(first, key=lambda label: first[label])
    runs = [run for run in styles if any(row.run == run for row in told)]
    data = []
    for place, run in enumerate(runs):
        own = [row for row in told if row.run == run]
        shift = (place - (len(runs) - 1) / 2) * 0.8 / max(len(runs), 2)
        data += _onset_traces(run, own, [labels.index(row.label) + shift for row in own], styles[run])
    xs = [x for row in told for x in (row.low, row.tokens, row.high, row.saturated_tokens) if x]
    spoken = ", ".join(f"{label} at {legible_count(first[label])} tokens" for label in labels[:12])
    return Figure(
        title=title,
        unit="tokens at which scores leave chance",
        description=f"{title}, in the order of the earliest run: {spoken}.",
        data=data,
        layout=_rows_layout(labels, row_pixels=max(_ROW_PIXELS, 12 * len(runs)))
        | {"xaxis": x_layout("tokens", "tokens", (min(xs), max(xs)))},
        wide=True,
    )


def _prediction_figure(run: str, rows: Sequence[PredictionRow], style: Style) -> Figure:
    values = [row.value or 0.0 for row in rows]
    at = list(range(len(rows)))
    predicted = {
        "type": "scatter",
        "mode": "markers",
        "name": "predicted, 80%",
        "x": values,
        "y": at,
        "marker": {"size": 9, "color": style.colour, "symbol": style.marker},
        "error_x": _bars(values, [row.low for row in rows], [row.high for row in rows], style.colour),
        "hovertemplate": "predicted %{x:.3f}<extra></extra>",
    }
    data: list[dict[str, Any]] = [predicted]
    came = [(row.came, place) for place, row in zip(at, rows, strict=True) if row.came is not None]
    if came:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "what came",
                "x": [value for value, _ in came],
                "y": [place for _, place in came],
                "marker": {"size": 11, "color": INK, "symbol": _HOLLOW, "line": {"width": 2}},
                "hovertemplate": "came %{x:.3f}<extra></extra>",
            }
        )
    inside = [row.is_inside for row in rows if row.is_inside is not None]
    held = f" {sum(inside)} of {len(inside)} scores came inside their interval." if inside else ""
    spoken = "; ".join(
        f"{row.label} {row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
        + (f", came {row.came:.3f}" if row.came is not None else "")
        for row in rows
        if row.value is not None and row.low is not None and row.high is not None
    )
    layout = _rows_layout([row.label for row in rows], row_pixels=_ROW_PIXELS, legend=True)
    return Figure(
        title=run,
        unit=f"at {legible_count(rows[0].at_tokens)} tokens",
        description=f"Predicted finals of {run}: {spoken}.{held}",
        data=data,
        layout=layout | {"xaxis": _score_axis()},
    )


def _onset_traces(run: str, rows: Sequence[OnsetRow], at: Sequence[float], style: Style) -> list[dict[str, Any]]:
    x = [row.tokens or 0.0 for row in rows]
    common = {"type": "scatter", "mode": "markers", "name": html.escape(run), "legendgroup": run}
    onset = common | {
        "x": x,
        "y": list(at),
        "marker": {"size": 8, "color": style.colour, "symbol": style.marker},
        "error_x": _bars(x, [row.low for row in rows], [row.high for row in rows], style.colour),
        "text": [html.escape(f"{run}: {row.label}") for row in rows],
        "hovertemplate": "%{text}<br>onset at %{x:.3~s} tokens<extra></extra>",
    }
    ended = [(row, place) for row, place in zip(rows, at, strict=True) if row.saturated_tokens is not None]
    if not ended:
        return [onset]
    saturated = common | {
        "x": [row.saturated_tokens for row, _ in ended],
        "y": [place for _, place in ended],
        "marker": {"size": 9, "color": style.colour, "symbol": "line-ns-open", "line": {"width": 2}},
        "text": [html.escape(f"{run}: {row.label}") for row, _ in ended],
        "hovertemplate": "%{text}<br>grown out at %{x:.3~s} tokens<extra></extra>",
    }
    return [onset, saturated]


def _bars(
    values: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None], colour: str
) -> dict[str, Any]:
    """Intervals about dots; none where an end is not known."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if high is None else max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
        "arrayminus": [0.0 if low is None else max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
        "color": colour,
        "thickness": 2,
        "width": 4,
    }


def _rows_layout(labels: Sequence[str], *, row_pixels: int, legend: bool = False) -> dict[str, Any]:
    """A layout with a labelled row for each of the labels, the first on top."""
    height = 62 + row_pixels * len(labels) + (26 if legend else 0)
    texts = [label if len(label) <= 28 else label[:27] + "…" for label in labels]
    shown = (
        {"legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 12}}} if legend else {}
    )
    return base_layout(None, annotations=[], height=height) | {
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(labels))),
            "ticktext": [html.escape(text) for text in texts],
            "range": [len(labels) - 0.5, -0.5],
            "automargin": "width+left",
            "showgrid": True,
            "gridcolor": "#edf0f3",
            "zeroline": False,
            "ticks": "",
        },
        "margin": {"l": 46, "r": 14, "t": 30 if legend else 10, "b": 44},
        "hovermode": "closest",
        "showlegend": legend,
        **shown,
    }


def _score_axis() -> dict[str, Any]:
    return {"showgrid": True, "gridcolor": "#e4e7eb", "zeroline": False, "nticks": 6, "ticks": "outside", "ticklen": 5}
