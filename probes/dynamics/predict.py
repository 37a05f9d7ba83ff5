"""Where a run's scores will be at its end: from its own past and, where there are, finished smaller runs of its family.

References give a `Surface` over size and tokens, the run's own past a power law; where there are both, the prediction
is between them. What nobody can say is refused with the reason instead of predicted: scores at chance, and sizes and
tokens that neither the references nor the run's past come near (`probes.dynamics.reach`). A size sees smaller finished
sizes and its own past, nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from probes.dynamics.chance import at_chance
from probes.dynamics.combine import combine, own_weight
from probes.dynamics.extrapolate import FEWEST, SHORT_CURVE, extrapolate
from probes.dynamics.metrics import PREDICTED, is_predicted
from probes.dynamics.noise import judged_value, unjudged_value
from probes.dynamics.reach import own_past_ends, references_end
from probes.dynamics.references import family_references
from probes.dynamics.surface import Band, fit_surfaces, relevant
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve

LEVEL = 0.8
"""Share of the truths an interval is to hold."""

_WIDEST = 0.5
"""An interval wider than this share of the way from chance to the best score, or of a loss itself, says nothing."""


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
    said = _say(table, run, left, references=learnt, tokens=at) if at is not None else {}
    found = []
    for one in wanted:
        curve = table.get(run, one)
        refused = Prediction(run=run, series=one, domain=curve.domain if curve else "", tokens=at or np.nan)
        if one in refusals or curve is None or at is None:
            found.append(replace(refused, refused=refusals[one]))
        elif isinstance(answer := said[one], str):
            found.append(replace(refused, refused=answer))
        elif (nothing := _says_nothing(answer.band, curve)) is not None:
            found.append(replace(refused, refused=nothing))
        else:
            found.append(_prediction(answer.band, curve, at, method=answer.method, level=level))
    return found


@dataclass(frozen=True, slots=True)
class _Said:
    """What is predicted, and in words how."""

    band: Band
    method: str


def _say(
    table: CurveTable, run: str, series: Sequence[Series], *, references: Sequence[str], tokens: float
) -> dict[Series, _Said | str]:
    """A prediction for each series, or why there is none."""
    facts = table.runs[run]
    past = {one: relevant(curve, facts.total_tokens) for one in series if (curve := table.get(run, one)) is not None}
    ends = {one: references_end(table, run, one, references=references, tokens=tokens) for one in series}
    carried = [one for one in series if ends[one] is None]
    surfaces = fit_surfaces(table, runs=[*references, run], series=carried) if carried else {}
    long_enough = {one: curve for one, curve in past.items() if len(curve) >= FEWEST}
    own, own_alone = (extrapolate(long_enough, tokens, alone=alone) for alone in (False, True))
    found: dict[Series, _Said | str] = {}
    for one in series:
        learnt_from = [name for name in references if table.get(name, one) and table.runs[name].parameters]
        own_ends = own_past_ends(past[one], tokens)
        if one in surfaces and facts.parameters:
            band = surfaces[one].predict(parameters=facts.parameters, tokens_Q=np.array([tokens]), run=run)
            method = f"size and tokens, from {', '.join(learnt_from)}"
            if one in own:
                weight = own_weight(
                    seen=float(past[one].tokens_C[-1]),
                    tokens=tokens,
                    parameters=facts.parameters,
                    references=[table.runs[name].parameters or 0.0 for name in learnt_from],
                )
                band, method = combine(band, own[one], weight=weight), f"{method}; its own past counts {weight:.0%}"
            found[one] = _Said(band, method)
        elif own_ends is None:
            few = f", only {len(past[one])} checkpoints" if len(past[one]) < SHORT_CURVE else ""
            instead = f"; {ends[one]}" if learnt_from else ""
            found[one] = _Said(own_alone[one], f"own past{few}{instead}")
        else:
            found[one] = f"{own_ends}; {ends[one] or 'its references have too few scores of it'}."
    return found


def _says_nothing(band: Band, curve: TaskCurve) -> str | None:
    """Why an interval is too wide to be worth printing."""
    chance = curve.chance if np.isfinite(curve.chance) else 0.0
    room = float(abs(judged_value(curve)[-1])) if curve.lower_is_better else 1.0 - chance
    width = 2.0 * float(stats.norm.ppf(0.5 + LEVEL / 2.0) * band.score_deviation_Q[0])
    if width <= _WIDEST * room:
        return None
    low, high = sorted(unjudged_value(curve, band.mean_Q[0] + width * np.array([-0.5, 0.5])))
    return f"its {LEVEL:.0%} interval would be {low:.3g} to {high:.3g}, which says nothing."


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
    largest = float(curve.value_C.max())
    if not curve.lower_is_better and largest > 1.0:
        return f"its scores reach {largest:.4g}, and the best possible is 1: percentages must be divided by 100."
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
