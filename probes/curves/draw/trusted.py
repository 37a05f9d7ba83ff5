"""Draws `Trust`: a panel for each curve with a band of its noise, trusted or not, and the reason."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.curves.draw.canvas import Chart, draw_chance, draw_curve, finish, panels, token_axis, value_axis
from probes.dynamics.noise import judged_value, unjudged_value
from probes.report.layout import INK, PALETTE

if TYPE_CHECKING:
    from probes.curves.trusted import Trust
    from probes.dynamics.table import TaskCurve
    from probes.dynamics.trust import Verdict

_BLUE, _RED = PALETTE[:2]
_REASON_WIDTH = 44
_DEVIATIONS = 2.0


def draw_trust(found: Trust, *, limit: int) -> Chart:
    """Recommended curves first, then those to distrust, then other trusted ones; the advice stands below.

    Args:
        found: the verdicts.
        limit: most panels, over all runs.
    """
    ordered = _ordered(found)
    shown = ordered[:limit]
    figure, axes = panels(
        [f"{one.run}\n{one.series}: {'trusted' if one.trusted else 'not trusted'}" for one in shown],
        notes=found.remarks(),
        shown=(len(shown), len(ordered)),
        height=1.15,
    )
    handles: dict[str, Any] = {}
    for panel, one in zip(axes, shown, strict=True):
        curve = found.table.get(one.run, one.series)
        assert curve is not None, "a verdict is of a curve of its table"
        axis = token_axis(panel, curve.tokens_C)
        look = {"color": _BLUE, "linestyle": "-"} if one.trusted else {"color": _RED, "linestyle": "--"}
        name = "trusted" if one.trusted else "not trusted"
        handles[name] = draw_curve(panel, axis, curve, marker="o" if one.trusted else "x", markersize=2.8, **look)
        low_C, high_C = noise_band(curve, one)
        places = [axis.place(tokens) for tokens in curve.tokens_C]
        band = panel.fill_between(places, low_C, high_C, color=look["color"], alpha=0.18, linewidth=0)
        handles[f"band of {_DEVIATIONS:g} deviations of its noise"] = band
        handles |= {"guessing": line} if (line := draw_chance(panel, curve.chance)) is not None else {}
        value_axis(panel, curve.metric)
        reason = "\n".join(textwrap.wrap(one.reason, _REASON_WIDTH)[:3])
        panel.annotate(reason, (0.02, 0.98), xycoords="axes fraction", va="top", fontsize=6, color=INK, clip_on=True)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high + 0.3 * (high - low))
    finish(figure, handles, title="Which scores can be trusted")
    return figure


def noise_band(curve: TaskCurve, verdict: Verdict) -> tuple[np.ndarray, np.ndarray]:
    """The curve less and more two standard deviations of its checkpoint noise, in the metric's unit."""
    if not np.isfinite(verdict.noise):
        return curve.value_C, curve.value_C
    judged_C = judged_value(curve)
    ends = [unjudged_value(curve, judged_C + sign * _DEVIATIONS * verdict.noise) for sign in (-1.0, 1.0)]
    return np.minimum(*ends), np.maximum(*ends)


def _ordered(found: Trust) -> list[Verdict]:
    """Recommended, then not trusted, then the rest, parts of large benchmarks last."""
    from probes.dynamics.benchmarks import parts_of_large_benchmarks

    parts = parts_of_large_benchmarks(one.series for one in found.records)
    chosen = {(name, one.series) for name, advice in found.advice.items() for one in advice.watch}

    def rank(one: Verdict) -> tuple[bool, bool, bool]:
        return (one.run, one.series) not in chosen, one.series in parts, one.trusted

    return sorted(found.records, key=rank)
