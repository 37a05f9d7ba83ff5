"""What all figures share: panels in a grid, the token axis, colours and marks, and their bytes as PNG or SVG.

Curves differ in marks and dashes as well as in colour, so that a figure can be read in black and white.
"""

from __future__ import annotations

import io
import textwrap
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple

from probes.dynamics.metrics import PERPLEXITIES, plain
from probes.dynamics.table import TaskCurve
from probes.report.axis import TokenAxis
from probes.report.layout import INK, MUTED, PALETTE

MOST_PANELS = 24
"""Panels of a figure unless told; what is left out is said in the figure."""
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")

_PANEL_WIDTH, _PANEL_HEIGHT = 3.3, 2.5  # inches
_DOTS_PER_INCH = 144
_SMALL, _TINY = 8.0, 7.0
_SALT = "fineline"
_saving = threading.Lock()
"""Matplotlib reads the salt of SVG identifiers from settings of the whole process."""


class Chart(Figure):
    """A matplotlib figure that a notebook shows by itself, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return as_png(self)


def panels(
    names: Sequence[str], *, notes: Iterable[str] = (), shown: tuple[int, int] = (0, 0), height: float = 1.0
) -> tuple[Chart, list[Axes]]:
    """A figure with a panel for each name.

    Args:
        names: title of each panel.
        notes: sentences below it: what was refused or left out, and why.
        shown: how many of what there is are drawn, and how many there are; fewer are said in the figure.
        height: of a panel, in usual ones.

    Returns:
        The figure and its panels, in order.
    """
    count = max(len(names), 1)
    # Three or four in a row, whichever leaves fewer places empty.
    columns = count if count <= 3 else min((4, 3), key=lambda many: -count % many)
    rows = -(-count // columns)
    told = list(notes)
    if shown[0] < shown[1]:
        told.insert(0, f"{shown[0]} of {shown[1]} are shown.")
    width = max(columns * _PANEL_WIDTH, 6.4)
    lines = [line for note in told for line in textwrap.wrap(note, int(width * 18))]
    figure = Chart(
        figsize=(width, rows * _PANEL_HEIGHT * height + 0.9 + 0.14 * len(lines)),
        dpi=_DOTS_PER_INCH,
        layout="constrained",
    )
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=_TINY, color=INK, ha="left", x=0.01)
    if not names:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "Nothing to draw.", ha="center", va="center", transform=axes.transAxes)
        return figure, []
    grid = list(np.asarray(figure.subplots(rows, columns, squeeze=False)).flat)
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(name, fontsize=_SMALL, color=INK)
        style(axes)
    for axes in grid[len(names) :]:
        axes.remove()
    return figure, grid[: len(names)]


def style(axes: Axes) -> None:
    """Small labels, a faint grid, no frame above and to the right."""
    axes.tick_params(labelsize=_TINY, colors=INK)
    axes.grid(True, color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def token_axis(axes: Axes, tokens: Iterable[float]) -> TokenAxis:
    """Makes the x axis one of tokens, logarithmic, as in the report; untrained is drawn at its left edge as `0`.

    Args:
        axes: the panel.
        tokens: all positions that are drawn.

    Returns:
        The axis, which says where a position is drawn.
    """
    counts = [int(count) for count in tokens if np.isfinite(count)]
    positive = [count for count in counts if count > 0]
    axis = TokenAxis.spanning(counts, tokens_per_step=min(positive, default=1))
    layout = axis.layout()
    axes.set_xscale("log")
    low, high = (10.0**end for end in layout["range"])
    margin = (high / low) ** 0.03
    axes.set_xlim(low / margin, high * margin)
    axes.set_xticks(layout["tickvals"], layout["ticktext"])
    axes.set_xticks(layout["minor"]["tickvals"], minor=True)
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    label_axis(axes, x="tokens (log)")
    return axis


def count_axis(axes: Axes, name: str) -> None:
    """Makes the x axis a logarithmic one of counts, with its name."""
    axes.set_xscale("log")
    label_axis(axes, x=name)


def label_axis(axes: Axes, *, x: str | None = None, y: str | None = None) -> None:
    """Names the axes."""
    if x is not None:
        axes.set_xlabel(x, fontsize=_TINY, color=INK)
    if y is not None:
        axes.set_ylabel(y, fontsize=_TINY, color=INK)


def look_of(number: int) -> dict[str, Any]:
    """Colour, mark and dash of the curve of this number, which no other of the first 56 has."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKS[number % len(MARKS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markersize": 2.8,
        "linewidth": 1.1,
    }


def value_axis(axes: Axes, metric: str) -> None:
    """Names the y axis by its metric and unit."""
    unit = {"gold_bpb": "bits per byte", "bpb": "bits per byte", "bits_per_byte": "bits per byte"}
    unit |= {"loss": "nats per token", "ce_loss": "nats per token"}
    told = f" ({unit[plain(metric)]})" if plain(metric) in unit else ""
    if plain(metric) in PERPLEXITIES:
        # A perplexity falls from a vocabulary's size to a handful.
        axes.set_yscale("log")
        told = " (log)"
    label_axis(axes, y=f"{metric}{told}")


def draw_curve(axes: Axes, axis: TokenAxis, curve: TaskCurve, **looks: Any) -> Any:
    """Draws the scores of a curve over tokens; its line."""
    (line,) = axes.plot([axis.place(tokens) for tokens in curve.tokens_C], curve.value_C, **looks)
    return line


def draw_chance(axes: Axes, chance: float) -> Any:
    """Draws the score of guessing, where it is known and near what is shown; None otherwise."""
    low, high = axes.get_ylim()
    if not np.isfinite(chance) or not low - 0.5 * (high - low) <= chance <= high:
        return None
    return axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.0, zorder=1)


def draw_prediction(axes: Axes, place: float, value: float, *, low: float, high: float) -> Any:
    """Draws what is predicted at one place, with its interval; without one where its ends are not known (nan)."""
    ends = [[value - low], [high - value]] if np.isfinite([low, high]).all() else [[0.0], [0.0]]
    return axes.errorbar(
        [place],
        [value],
        yerr=np.maximum(ends, 0.0),
        color=PALETTE[1],
        marker="D",
        markersize=5,
        capsize=4,
        linewidth=1.6,
        linestyle="none",
        zorder=5,
    )


def finish(figure: Figure, handles: Mapping[str, Any], *, title: str) -> None:
    """The title and one legend for all panels, above them; marks that are None are left out."""
    shown = {name: handle for name, handle in handles.items() if handle is not None}
    if not shown:
        figure.suptitle(title, fontsize=11, color=INK)
        return
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside upper center",
        ncols=min(len(shown), 5),
        fontsize=_SMALL,
        frameon=False,
        title=title,
        title_fontsize=11,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, at 144 dots per inch."""
    return _saved(figure, "png", {"Software": None})


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    return _saved(figure, "svg", {"Date": None, "Creator": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    content = io.BytesIO()
    with _saving, matplotlib.rc_context({"svg.hashsalt": _SALT}):
        figure.savefig(content, format=kind, metadata=metadata)
    return content.getvalue()
