"""Scaling laws over a whole table: which law fits which curves, and one row for each fit with its prediction.

For `python -m probes fit`. The laws themselves are in `probes.dynamics.laws` and fitted by the modules that this one
calls; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.annealing import ScheduledCurve, fit_annealing, rates_between
from probes.dynamics.chance import at_chance
from probes.dynamics.fit_law import LawFit, Prediction, fit_law
from probes.dynamics.law_points import final_points, place
from probes.dynamics.laws import LAWS, Target
from probes.dynamics.link import LINKS
from probes.dynamics.metrics import (
    ACCURACIES,
    LOSSES,
    PERPLEXITIES,
    is_accuracy,
    is_loss_metric,
)
from probes.dynamics.resample import resample
from probes.dynamics.single_run import fit_single_run
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve
from probes.dynamics.two_step import TwoStepFit, fit_two_step

_RATE = "learning_rate"
_TWO_STEP_LAWS = ("ladder", "gadre", "flops", "llama3")
_DIRECT_LAWS = ("direct", "direct-flops")
_FEWEST_SIZES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedFits:
    """What to fit and to predict.

    Attributes:
        law: a name of `LAWS`; `auto` takes the ladder's two steps where three sizes are finished (a direct law for
            scores without a loss of their task), else each run's law in tokens.
        link: from loss to score, a name of `LINKS`.
        tasks: of these alone; all without.
        metrics: of these alone; all without.
        parameters: size to predict for; None predicts nothing between runs.
        tokens: length to predict for; of single runs their planned end unless told.
        draws: resampled fits.
        level: share of outcomes that intervals are to hold.
        rates: planned learning rates of every step, by run; of other runs those that the table holds are used.
    """

    law: str = "auto"
    link: str = "sigmoid"
    tasks: Collection[str] = ()
    metrics: Collection[str] = ()
    parameters: float | None = None
    tokens: float | None = None
    draws: int = 200
    level: float = 0.8
    rates: Mapping[str, np.ndarray] = field(default_factory=dict)


def fit_rows(table: CurveTable, wanted: WantedFits) -> list[dict[str, Any]]:
    """One row for each fit: law, what of, parameters with the ends of their intervals, prediction or refusal.

    Raises:
        ProbeError: nothing in the table is what the law describes.
    """
    series = [
        one
        for one in table.series()
        if one.metric != _RATE
        and (not wanted.tasks or one.task in wanted.tasks)
        and (not wanted.metrics or one.metric in wanted.metrics)
    ]
    law = wanted.law if wanted.law != "auto" else _suitable(table)
    fits = {"tokens": _single_rows, "annealing": _annealing_rows, "annealing-sizes": _annealing_rows}
    rows = list(fits.get(law, _between_rows)(table, series, wanted, law))
    if not rows:
        described = ACCURACIES if law in _DIRECT_LAWS else LOSSES + PERPLEXITIES
        raise ProbeError(
            f"The law {law} describes {', '.join(described)}"
            f"{'' if law in _DIRECT_LAWS else ', and scores through a loss of the same task'}; the table has none of "
            "them among the tasks and metrics asked for."
        )
    return rows


def _suitable(table: CurveTable) -> str:
    sizes = {facts.parameters for name, facts in table.runs.items() if facts.parameters and table.is_finished(name)}
    return "ladder" if len(sizes) >= _FEWEST_SIZES else "tokens"


def _between_rows(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[dict[str, Any]]:
    """Laws between runs, of their ends."""
    at = None
    if wanted.parameters is not None and wanted.tokens is not None:
        at = place(wanted.parameters, wanted.tokens)
    scores = [one for one in series if is_accuracy(one.metric)]
    guessed = at_chance(table, scores, references=list(table.runs)) if scores else {}
    known: dict[Series, LawFit] = {}

    def law_of(loss: Series) -> LawFit:
        """A loss's fit, once for itself and for the scores that start from it."""
        if loss not in known:
            known[loss] = resample(
                fit_law(LAWS[law], final_points(table, loss), target=Target.of_metric(loss.metric)), draws=wanted.draws
            )
        return known[loss]

    for one in series:
        if one in guessed:
            yield _named(one, law=law) | _predicted(None, None, wanted.level, reason=guessed[one])
        elif is_loss_metric(one.metric) and law in _TWO_STEP_LAWS:
            fit = law_of(one)
            yield _row(fit, one, law=law, level=wanted.level) | _predicted(fit, at, wanted.level)
        elif is_accuracy(one.metric) and law in _DIRECT_LAWS:
            target = Target("log_score", next(curve.chance for curve in table.of_series(one)))
            fit = resample(fit_law(LAWS[law], final_points(table, one), target=target), draws=wanted.draws)
            yield _row(fit, one, law=law, level=wanted.level) | _predicted(fit, at, wanted.level)
        elif is_accuracy(one.metric) and (loss := _loss_of(table, one)) is not None:
            chained = fit_two_step(
                table, loss=loss, score=one, link=LINKS[wanted.link], draws=wanted.draws, step1=law_of(loss)
            )
            yield _chained_row(chained, one, loss, law=law, level=wanted.level) | _predicted(chained, at, wanted.level)
        elif is_accuracy(one.metric) and wanted.law == "auto":
            lengths = {curve.tokens_C[-1] for curve in table.of_series(one)}
            yield from _between_rows(
                table, [one], wanted, "direct" if len(lengths) >= _FEWEST_SIZES else "direct-flops"
            )


def _single_rows(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[dict[str, Any]]:
    """The law in tokens, for each run its own."""
    scores = [one for one in series if is_accuracy(one.metric)]
    guessed = {run: at_chance(table, scores, references=[run]) if scores else {} for run in table.runs}
    for one in series:
        if not (is_loss_metric(one.metric) or is_accuracy(one.metric)):
            continue
        for curve in table.of_series(one):
            if one in guessed[curve.run]:
                reason = guessed[curve.run][one]
                yield _named(one, law=law, run=curve.run) | _predicted(None, None, wanted.level, reason=reason)
                continue
            fit = fit_single_run(curve, draws=wanted.draws)
            tokens = wanted.tokens or table.runs[curve.run].total_tokens
            at = {"tokens": tokens} if tokens else None
            yield _row(fit, one, law=law, run=curve.run, level=wanted.level) | _predicted(fit, at, wanted.level)


def _annealing_rows(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[dict[str, Any]]:
    """The law of the learning rate over all runs together; predicts the planned end of those that go on."""
    rates = dict(wanted.rates)
    for run in table.runs:
        recorded = table.get(run, Series("train", _RATE))
        if run not in rates and recorded is not None:
            rates[run] = rates_between(recorded.step_C, recorded.value_C)
    if not rates:
        raise ProbeError(
            f"The law {law} needs learning rates: give run directories with their config.yaml, or a table that holds "
            f"them as task train, metric {_RATE}."
        )
    for one in series:
        curves = [curve for curve in table.of_series(one) if curve.run in rates]
        if one.metric not in LOSSES or not curves:
            continue
        sized = law == "annealing-sizes"
        scheduled = [
            ScheduledCurve(
                curve=_within(curve, len(rates[curve.run])),
                rate_S=rates[curve.run],
                parameters=table.runs[curve.run].parameters if sized else None,
            )
            for curve in curves
        ]
        found = fit_annealing(scheduled, draws=wanted.draws)
        row = _row(found.fit, one, law=found.fit.law.name, level=wanted.level)
        coming = [curve for curve in scheduled if curve.curve.step_C[-1] < len(curve.rate_S)]
        for curve in coming:
            end = found.place(curve.rate_S, len(curve.rate_S), parameters=curve.parameters)
            yield row | {"run": curve.curve.run} | _predicted(found.fit, end, wanted.level)
        if not coming:
            yield row | _predicted(found.fit, None, wanted.level)


def _within(curve: TaskCurve, num_steps: int) -> TaskCurve:
    return curve.where((curve.step_C >= 1) & (curve.step_C <= num_steps))


def _loss_of(table: CurveTable, score: Series) -> Series | None:
    """The loss of the same task and prompts that a link can start from."""
    for metric in LOSSES:
        loss = Series(score.task, metric, score.num_fewshot)
        if any(curve.domain != LOSS_DOMAIN for curve in table.of_series(loss)):
            return loss
    return None


def _named(series: Series, *, law: str, run: str | None = None) -> dict[str, Any]:
    shots = series.num_fewshot if series.num_fewshot >= 0 else None
    return {"law": law, "run": run, "task": series.task, "metric": series.metric, "shots": shots}


def _row(fit: LawFit, series: Series, *, law: str, level: float, run: str | None = None) -> dict[str, Any]:
    row = _named(series, law=law, run=run) | {"points": len(fit.points)}
    for name in fit.law.parameters:
        low, high = fit.parameter_interval(name, level=level)
        row |= {name: fit.parameter(name), f"{name}_low": low, f"{name}_high": high}
    return row


def _chained_row(fit: TwoStepFit, score: Series, loss: Series, *, law: str, level: float) -> dict[str, Any]:
    row = _row(fit.step1, score, law=f"{law} + {fit.step2.link.name}", level=level) | {"through": loss.metric}
    for position, name in enumerate(fit.step2.link.parameters):
        row[f"link_{name}"] = float(fit.step2.value_K[position])
    return row


def _predicted(
    fit: LawFit | TwoStepFit | None, at: Mapping[str, float] | None, level: float, *, reason: str | None = None
) -> dict[str, Any]:
    """The end of a row: what is predicted, or why nothing is."""
    found: Prediction | None = None
    if fit is not None:
        reason = fit.refused or (fit.why_not(at) if at is not None else None)
        found = fit.predict(at, level=level) if at is not None and reason is None else None
    return {
        "at_parameters": at.get("parameters") if at else None,
        "at_tokens": at.get("tokens") if at else None,
        "predicted": found.value if found else None,
        f"low_{level:.0%}": found.low if found else None,
        f"high_{level:.0%}": found.high if found else None,
        "refused": reason,
    }
