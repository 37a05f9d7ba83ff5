"""Which series are still guessed, in a run and in its references: of those nothing is predicted.

Stricter than a test against chance and laxer than `probes.dynamics.trust`, whose verdicts it counts. Of curves that are
too short for a verdict it asks whether the latest score is above guessing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from scipy import special

from probes.dynamics.metrics import is_score
from probes.dynamics.table import CurveTable, Series
from probes.dynamics.told_chance import SAY_CHANCE
from probes.dynamics.trust import TrustRule, Verdict, holm, judge

_LARGEST_P_VALUE = 0.01
_LEAST_MONOTONICITY = 0.5
_LEAST_GAIN = 3.0
_REFERENCES_ABOVE = 2
_LARGEST_P_VALUE_OF_FEW = 0.05
_UNKNOWN_ITEMS = 1_000
"""Items that a task is taken to have where standard errors are unknown."""


def at_chance(
    table: CurveTable, series: Collection[Series], *, references: Sequence[str], run: str | None = None
) -> dict[Series, str]:
    """The series that neither the run nor its references have lifted above guessing, with the reason in words.

    Where the score of guessing is not known, a score is above it once it has risen by many times its noise.
    Significance is corrected for the number of curves of each run, and a curve must also rise: of Pythia's 57 MMLU
    subjects a few look good by luck, and some, whose right answers are not evenly spread, from the start.

    Args:
        table: what is known.
        series: those asked about; of bits per byte and losses guessing means nothing, and they are never at it.
        references: two of them together speak for a series, or the only one.
        run: speaks for itself.
    """
    names = [*references, *([run] if run is not None else [])]
    needed = min(_REFERENCES_ABOVE, len(references))
    above: Counter[Series] = Counter()
    checkpoints: Counter[Series] = Counter()
    flat: set[Series] = set()
    unknown: set[Series] = set()
    verdicts = judge(table, runs=names)
    short = _short_but_above(table, verdicts)
    for verdict in verdicts:
        known, guessable = bool(np.isfinite(verdict.chance)), is_score(verdict.series.metric)
        significant = verdict.p_value <= _LARGEST_P_VALUE if known else verdict.gain >= TrustRule().unknown_chance_gain
        if guessable and not known:
            unknown.add(verdict.series)
        rises = verdict.monotonicity >= _LEAST_MONOTONICITY and verdict.gain >= _LEAST_GAIN
        if (verdict.run, verdict.series) in short:
            significant = rises = True
        if not (known or guessable) or (significant and rises and verdict.run == run):
            above[verdict.series] += _REFERENCES_ABOVE
        elif significant and rises:
            above[verdict.series] += 1
        elif significant:
            flat.add(verdict.series)
        checkpoints[verdict.series] = max(checkpoints[verdict.series], verdict.num_checkpoints)
    where = "every run that measured it"
    if run is not None:
        where = "this run and its references" if references else "this run"

    def why(one: Series) -> str:
        if one in unknown:
            return (
                f"the score of guessing is not known ({SAY_CHANCE}), and without it no rise of "
                f"{TrustRule().unknown_chance_gain:g} times its noise shows in {where} that it is above it."
            )
        if checkpoints[one] < TrustRule().checkpoints:
            few = f"at most {checkpoints[one]} checkpoint(s) after the very first ones in {where}"
            return f"{few}, and the latest score is not above guessing."
        if one in flat:
            return f"above chance, but without a rise that is more than noise, in {where}: nothing can be said of it."
        return f"at chance in {where}: nothing can be said of it."

    return {one: why(one) for one in series if above[one] < max(needed, 1)}


def _short_but_above(table: CurveTable, verdicts: Sequence[Verdict]) -> set[tuple[str, Series]]:
    """Runs and series with too few checkpoints for a verdict, whose latest score is above guessing all the same."""
    p_values: dict[str, dict[Series, float]] = {}
    for verdict in verdicts:
        curve = table.get(verdict.run, verdict.series)
        if verdict.num_checkpoints >= TrustRule().checkpoints or curve is None or not np.isfinite(curve.chance):
            continue
        stderr = curve.stderr_C[-1]
        if not np.isfinite(stderr):
            stderr = np.sqrt(curve.chance * (1.0 - curve.chance) / _UNKNOWN_ITEMS)
        above = (curve.value_C[-1] - curve.chance) / max(stderr, 1e-9)
        p_values.setdefault(verdict.run, {})[verdict.series] = float(special.ndtr(-above))
    return {
        (run, series)
        for run, of_run in p_values.items()
        for series, p_value in zip(of_run, holm(np.array(list(of_run.values()))), strict=True)
        if p_value <= _LARGEST_P_VALUE_OF_FEW
    }
