"""Draws runs beside a published original: a panel for each score, with the band that noise explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probes.curves.draw.canvas import Chart, finish, panels, token_axis, value_axis
from probes.report.layout import INK, PALETTE

if TYPE_CHECKING:
    from probes.dynamics.beside_original import Beside


def draw_beside(found: Sequence[Beside], *, limit: int = 24) -> Chart:
    """The original with its band, and the run's scores; what is not compared is said below.

    Args:
        found: runs beside originals.
        limit: most panels.
    """
    pairs = [(beside, task) for beside in found for task in beside.tasks]
    figure, axes = panels(
        [
            f"{beside.run} beside {beside.original.title}\n{task.series}: {task.verdict}"
            for beside, task in pairs[:limit]
        ],
        notes=[f"Not compared: {series}: {reason}" for one in found for series, reason in one.refused.items()],
        shown=(len(pairs[:limit]), len(pairs)),
    )
    handles: dict[str, Any] = {}
    for panel, (_, task) in zip(axes, pairs[:limit], strict=True):
        axis = token_axis(panel, task.tokens_K)
        places = [axis.place(tokens) for tokens in task.tokens_K]
        (original,) = panel.plot(places, task.original_K, color=PALETTE[0], linestyle="--", marker="s", markersize=2.5)
        band = panel.fill_between(
            places,
            task.original_K - task.half_K,
            task.original_K + task.half_K,
            color=PALETTE[0],
            alpha=0.18,
            linewidth=0,
        )
        (own,) = panel.plot(places, task.value_K, color=INK, marker="o", markersize=3)
        handles |= {"original, with the band that noise explains": (band, original), "run": own}
        value_axis(panel, task.series.metric)
    finish(figure, handles, title="Beside the published original, at equal tokens")
    return figure
