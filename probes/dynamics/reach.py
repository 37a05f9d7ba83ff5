"""How far predictions reach: to sizes and tokens near those of the references, and some way beyond a run's own past.

Beyond that the laws still give numbers, but nobody has measured how wrong they are. Whoever predicts asks here first,
and refuses with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from probes.dynamics.extrapolate import FEWEST, FURTHEST
from probes.dynamics.table import CurveTable, Series, TaskCurve

TOKENS_BEYOND = 1.2
"""Times the tokens of the longest reference up to which references speak for a run."""

SIZES_BEYOND = 10.0
"""Times larger than the largest reference, or smaller than the smallest, that a run may be."""


def references_end(
    table: CurveTable, run: str, series: Series, *, references: Sequence[str], tokens: float
) -> str | None:
    """Why references say nothing of a run's score at a position, in words; None if they do."""
    if not references:
        return "there is no finished smaller run of its family"
    curves = {name: curve for name in references if (curve := table.get(name, series)) is not None}
    sizes = [size for name in curves if (size := table.runs[name].parameters)]
    parameters = table.runs[run].parameters
    if not sizes:
        return "no reference of known size has measured it"
    if not parameters:
        return "its references are of no use as long as its own size is unknown"
    least, most = min(sizes) / SIZES_BEYOND, max(sizes) * SIZES_BEYOND
    if not least <= parameters <= most:
        return f"its references speak for {least:.2g} to {most:.2g} parameters, and it has {parameters:.2g}"
    last = max(float(curve.tokens_C[-1]) for curve in curves.values())
    if tokens > TOKENS_BEYOND * last:
        return f"its references end at {last:.4g} tokens and speak for {TOKENS_BEYOND * last:.4g} at most"
    return None


def own_past_ends(past: TaskCurve, tokens: float) -> str | None:
    """Why a run's own past says nothing of a position, in words; None if it does."""
    if len(past) < FEWEST:
        return f"{len(past)} checkpoint(s) of its own after the very first ones, and {FEWEST} are needed"
    last = float(past.tokens_C[-1])
    if tokens > FURTHEST * last:
        return f"its own past ends at {last:.4g} tokens and speaks for {FURTHEST * last:.4g} at most"
    return None
