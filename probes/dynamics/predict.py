"""Where a run's scores will be at its end: from its own past and, where there are, finished smaller runs of its family.

With references a `Surface` over size and tokens, without them the run's own curve extrapolated. What nobody can say is
refused with the reason instead of predicted. A size sees smaller finished sizes and its own past, nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from probes.dynamics.chance import at_chance
from probes.dynamics.extrapolate import FEWEST, extrapolate
from probes.dynamics.metrics import PREDICTED, is_predicted
from probes.dynamics.noise import unjudged_value
from probes.dynamics.references import family_references
from probes.dynamics.surface import Band, Surface, fit_surfaces, relevant
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve

LEVEL = 0.8
"""Share of the truths an interval is to hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A score to come, in the metric's own unit.

    Attributes:
        run: of which run.
        series: of what.
        domain: of the task.
        tokens: at which position.
        value: the prediction; nan if refused.
        low: lower end of the interval that is to hold a score there (one checkpoint's noise included) in `LEVEL` of
            all cases.
        high: its upper end.
        method: how it was made, with the references.
        refused: why nothing is predicted; None if something is.
    """

    run: str
    series: Series
    domain: str
    tokens: float
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    method: str = ""
    refused: str | None = None


def predict_finals(
    table: CurveTable,
    run: str,
    *,
    series: Collection[Series] | None = None,
    references: Sequence[str] | None = None,
    tokens: float | None = None,
    level: float = LEVEL,
    even_at_chance: bool = False,
) -> list[Prediction]:
    """Scores at the end of a run, or at any later position.

    Args:
        table: what is known now; for a prediction made in the past, `CurveTable.until` first.
        run: its past is what `table` holds of it.
        series: all that can be predicted unless named.
        references: runs to learn from; by default what `family_references` finds.
        tokens: where; the run's planned end by default.
        level: of the intervals.
        even_at_chance: predict what would be refused for being at chance, too: to measure the methods.

    Returns:
        One prediction for each series, some of them refused.
    """
    facts = table.runs[run]
    wanted = list(series) if series is not None else predictable(table, run)
    at = tokens or facts.total_tokens
    refusals = {one: why for one in wanted if (why := _why_not(table, run, one, at)) is not None}
    learnt = family_references(table, run).names if references is None else list(references)
    learnt = [name for name in learnt if name != run]
    if not even_at_chance:
        refusals |= at_chance(table, [one for one in wanted if one not in refusals], references=learnt, run=run)
    left = [one for one in wanted if one not in refusals]
    surfaces: dict[Series, Surface] = {}
    if learnt and facts.parameters:
        surfaces = fit_surfaces(table, runs=[*learnt, run], series=left)
    found = []
    for one in wanted:
        curve = table.get(run, one)
        domain = curve.domain if curve is not None else ""
        if one in refusals:
            found.append(Prediction(run=run, series=one, domain=domain, tokens=at or np.nan, refused=refusals[one]))
            continue
        assert curve is not None and at is not None
        of_series = [name for name in learnt if table.get(name, one) is not None]
        past = relevant(curve, facts.total_tokens)
        if one in surfaces and of_series and facts.parameters:
            band = surfaces[one].predict(parameters=facts.parameters, tokens_Q=np.array([at]), run=run)
            method = f"size and tokens, from {', '.join(of_series)}"
        elif len(past) >= FEWEST:
            band, method = extrapolate(past, at), "own past"
        else:
            why = f"{len(past)} checkpoint(s) and no finished smaller run of its family: at least {FEWEST} are needed."
            found.append(Prediction(run=run, series=one, domain=domain, tokens=at, refused=why))
            continue
        found.append(_prediction(band, curve, at, method=method, level=level))
    return found


def predictable(table: CurveTable, run: str) -> list[Series]:
    """Series of a run with a metric that can be predicted, abilities first."""
    curves = [curve for curve in table.of_run(run) if is_predicted(curve.metric)]
    return [curve.series for curve in sorted(curves, key=lambda curve: curve.domain == LOSS_DOMAIN)]


def _why_not(table: CurveTable, run: str, series: Series, tokens: float | None) -> str | None:
    curve = table.get(run, series)
    if curve is None:
        return f"{run} has no scores of it."
    if not is_predicted(series.metric):
        return f"{series.metric} has no law: predicted are {', '.join(PREDICTED)}."
    if tokens is None:
        return "it is not known how long the run is to be: say it with --at-tokens or in a --runs file."
    if tokens <= curve.tokens_C[-1] * (1 + 1e-9):
        return f"the run is there already: its score at {curve.tokens_C[-1]:.4g} tokens is {curve.value_C[-1]:.4g}."
    return None


def _prediction(band: Band, curve: TaskCurve, tokens: float, *, method: str, level: float) -> Prediction:
    reach = stats.norm.ppf(0.5 + level / 2.0) * band.score_deviation_Q[0]
    ends = [float(unjudged_value(curve, np.array([band.mean_Q[0] + shift]))[0]) for shift in (0.0, -reach, reach)]
    value, low, high = ends[0], min(ends[1:]), max(ends[1:])
    if not curve.lower_is_better:
        low, high = max(low, 0.0), min(high, 1.0)
    return Prediction(
        run=curve.run,
        series=curve.series,
        domain=curve.domain,
        tokens=tokens,
        value=value,
        low=low,
        high=high,
        method=method,
    )
