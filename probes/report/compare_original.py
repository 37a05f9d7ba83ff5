"""The section "Beside the original": a run's scores over the band about a published run's, by tokens.

What is compared, and the bands, come from `probes.dynamics.beside_original`; figures are plain plotly specifications.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.track.legible import legible_count
from probes.dynamics.beside_original import LEVEL, Beside, TaskBeside, band_about, sentence, summary
from probes.report.compare_curves import thinned
from probes.report.compare_figures import Style, joined, x_layout
from probes.report.compare_tables import original_table
from probes.report.figures import Figure
from probes.report.layout import INK, MUTED, Panel, base_layout, y_axis
from probes.report.page import Counter, note_below
from probes.report.traces import translucent

_HEIGHT = 252
_MOST_POINTS = 120
_DEFAULT = Style(INK, "solid", "circle")


def original_section(beside: Sequence[Beside], styles: Mapping[str, Style], counter: Counter) -> str:
    """Figures, table and verdict of each run beside its original, as HTML."""
    return "".join(_one(found, styles.get(found.run, _DEFAULT), counter) for found in beside)


def original_figures(found: Beside, style: Style) -> list[Figure]:
    """A small figure for each score: the original in grey with its band, the run's checkpoints in its colour."""
    return [_figure(found, task, style) for task in found.tasks]


def _one(found: Beside, style: Style, counter: Counter) -> str:
    note = (
        f"Grey: {found.original.title}, and the band in which {LEVEL:.0%} of the scores of an equal model lie by noise "
        "over items and by rounding or reading of what was published. Filled marks lie within it, hollow ones do not."
    )
    shown = counter.show(original_figures(found, style), note=note)
    remarks = "".join(f"<li>{html.escape(one)}</li>" for one in (*found.remarks, *found.original.notes))
    return (
        f"<h3>{html.escape(found.run)} beside {html.escape(found.original.title)}</h3>"
        f"<p>{html.escape(summary(found))}</p>{shown}"
        f'<div class="spaced">{original_table(found)}</div>'
        + note_below(
            "The band: half width of what noise and rounding do to a difference. Verdicts hold for all scores."
        )
        + (f"<ul>{remarks}</ul>" if remarks else "")
    )


def _figure(found: Beside, task: TaskBeside, style: Style) -> Figure:
    published, half_C = band_about(found, task)
    kept = thinned(published.curve, _MOST_POINTS)
    tokens_C, value_C = published.curve.tokens_C[kept], published.curve.value_C[kept]
    low_C, high_C = value_C - half_C[kept], value_C + half_C[kept]
    name = html.escape(found.run)
    data = _original_traces(found.original.title, tokens_C, value_C, half_C[kept])
    inside_K = np.array([verdict == "within" for verdict in task.verdicts])
    symbols = [style.marker if inside else f"{style.marker}-open" for inside in inside_K]
    data.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if len(task.tokens_K) > 1 else "markers",
            "name": name,
            "legendgroup": found.run,
            "x": joined([task.tokens_K], digits=5),
            "y": joined([task.value_K]),
            "line": {"color": style.colour, "width": 1.4, "dash": style.dash},
            "marker": {
                "size": 7,
                "color": style.colour,
                "symbol": symbols,
                "line": {"width": 1.6, "color": style.colour},
            },
            "hovertemplate": f"{name}<br>%{{x:.3~s}}: %{{y:.3f}}<extra></extra>",
        }
    )
    lowest = min(float(low_C.min()), float(task.value_K.min()))
    highest = max(float(high_C.max()), float(task.value_K.max()))
    margin = 0.06 * (highest - lowest) or 0.05
    ends = np.concatenate([tokens_C, task.tokens_K])
    return Figure(
        title=task.series.task,
        unit=_unit(task),
        description=f"{sentence(task)}. The original goes from {value_C[0]:.3f} at {legible_count(tokens_C[0])} "
        f"tokens to {value_C[-1]:.3f} at {legible_count(tokens_C[-1])}.",
        data=data,
        layout=base_layout(None, annotations=[], height=_HEIGHT)
        | {
            "xaxis": x_layout("tokens", "tokens", (float(ends.min()), float(ends.max()))),
            "yaxis": y_axis((lowest - margin, highest + margin), panel=Panel(height_pixels=_HEIGHT - 54)),
            "hovermode": "closest",
        },
    )


def _original_traces(title: str, tokens_C: np.ndarray, value_C: np.ndarray, half_C: np.ndarray) -> list[dict[str, Any]]:
    """The band and the line; of a single published checkpoint a mark with a bar."""
    name = html.escape(title)
    line = {
        "type": "scatter",
        "mode": "lines" if len(tokens_C) > 1 else "markers",
        "name": name,
        "x": joined([tokens_C], digits=5),
        "y": joined([value_C]),
        "line": {"color": MUTED, "width": 1.6, "dash": "dot"},
        "marker": {"size": 9, "color": MUTED, "symbol": "diamond"},
        "hovertemplate": f"{name}<br>%{{x:.3~s}}: %{{y:.3f}}<extra></extra>",
    }
    if len(tokens_C) == 1:
        bar = {"type": "data", "array": joined([half_C]), "color": MUTED, "thickness": 1.4}
        return [line | {"error_y": bar}]
    shade = {
        "type": "scatter",
        "mode": "lines",
        "name": f"{name}, band",
        "x": joined([tokens_C, tokens_C[::-1]], digits=5),
        "y": joined([value_C + half_C, (value_C - half_C)[::-1]]),
        "fill": "toself",
        "fillcolor": translucent(MUTED, 0.2),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [shade, line]


def _unit(task: TaskBeside) -> str:
    shots = f", {task.series.num_fewshot}-shot" if task.series.num_fewshot >= 0 else ""
    return f"{task.series.metric}{shots}"
