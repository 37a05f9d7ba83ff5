"""What a matplotlib figure shows, as numbers: tests compare these with what was to be drawn, not pixels."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure


def panel_of(figure: Figure, title: str) -> Axes:
    """The panel with this title."""
    (panel,) = [axes for axes in figure.axes if axes.get_title() == title]
    return panel


def lines_of(panel: Axes) -> list[np.ndarray]:
    """All lines of a panel: x above y."""
    return [np.asarray(line.get_xydata(), np.float64).T for line in panel.get_lines()]


def errorbar_ends(panel: Axes) -> list[tuple[float, float, float]]:
    """Place, low and high end of every error bar."""
    bars = [
        segment for each in panel.collections if isinstance(each, LineCollection) for segment in each.get_segments()
    ]
    return [(float(low[0]), float(low[1]), float(high[1])) for low, high in bars]
