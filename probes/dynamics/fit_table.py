"""Scaling laws over a whole table: which law fits which curves, and one row for each fit with its prediction.

For `python -m probes fit`. The laws themselves are in `probes.dynamics.laws` and fitted by the modules that this one
calls; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.annealing import ScheduledCurve, fit_annealing, rates_between
from probes.dynamics.chance import at_chance
from probes.dynamics.families import of_families
from probes.dynamics.finals_above_chance import finals_at_chance, has_finals_only
from probes.dynamics.fit_law import LawFit, Prediction, fit_law
from probes.dynamics.hold_out import with_intervals
from probes.dynamics.law_choice import fit_best, fit_direct
from probes.dynamics.law_points import Points, final_points, finished_curves, place
from probes.dynamics.laws import LAWS, TOKENS_LAW, Target
from probes.dynamics.link import LINKS, Link
from probes.dynamics.metrics import (
    ACCURACIES,
    LOSSES,
    PERPLEXITIES,
    is_accuracy,
    is_loss_metric,
    is_text_loss,
    plain,
)
from probes.dynamics.single_run import fit_single_run
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve
from probes.dynamics.two_step import TwoStepFit, fit_two_step, nearest_loss

_RATE = "learning_rate"
_TWO_STEP_LAWS = ("auto", "ladder", "gadre", "one-exponent", "flops", "llama3")
_DIRECT_LAWS = ("direct", "direct-flops")
_FEWEST_SIZES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedFits:
    """What to fit and to predict.

    Attributes:
        law: a name of `LAWS`; `auto` takes two steps where three sizes are finished, the law of the loss chosen by
            `probes.dynamics.law_choice` (a direct law for scores without a loss to start from), else each run's law
            in tokens.
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


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fit, or the reason why there is none.

    Attributes:
        row: law, what of, parameters with the ends of their intervals, prediction or refusal.
        fit: the fit; None where nothing was fitted.
        at: where it predicts, a number for each feature; None for nowhere.
        points: scores or losses that the fit describes; None where nothing was fitted.
    """

    row: dict[str, Any]
    fit: LawFit | TwoStepFit | None = None
    at: Mapping[str, float] | None = None
    points: Points | None = None

    @property
    def refused(self) -> str | None:
        """Why nothing is predicted; None if something is, or could be."""
        reason: str | None = self.row["refused"]
        return reason


def fit_rows(table: CurveTable, wanted: WantedFits) -> list[dict[str, Any]]:
    """The rows of `fit_all` alone.

    Raises:
        ProbeError: nothing in the table is what the law describes.
    """
    return [found.row for found in fit_all(table, wanted)]


def fit_all(table: CurveTable, wanted: WantedFits) -> list[Fitted]:
    """Fits what is wanted: one finding for each law and score, run or family; refused ones are among them.

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
    fits = {"tokens": _single_rows, "annealing": _annealing_rows, "annealing-sizes": _annealing_rows}
    law = wanted.law if wanted.law != "auto" else _suitable(table, wanted)
    found = list(fits.get(law, _rows_of_families)(table, series, wanted, law))
    if not any(one.row["task"] for one in found):
        described = ACCURACIES if law in _DIRECT_LAWS else LOSSES + PERPLEXITIES
        raise ProbeError(
            f"The law {law} describes {', '.join(described)}"
            f"{'' if law in _DIRECT_LAWS else ', and scores through a loss'}; the table has none of "
            "them among the tasks and metrics asked for."
        )
    return found


def _suitable(table: CurveTable, wanted: WantedFits) -> str:
    sizes = {facts.parameters for name, facts in table.runs.items() if facts.parameters and table.is_finished(name)}
    if len(sizes) >= _FEWEST_SIZES:
        return "auto"
    longest = max((len(curve) for curve in table), default=0)
    if wanted.parameters is not None or longest < min(TOKENS_LAW.num_distinct.values()):
        unknown = [name for name, facts in table.runs.items() if not facts.parameters]
        without = (
            f" Of {', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''} no size is known." if unknown else ""
        )
        raise ProbeError(
            f"A law between runs needs finished runs of {_FEWEST_SIZES} sizes, and the table has {len(sizes)}.{without}"
            f" Tell sizes in a column parameters, or with --runs FILE; a law of one run's own future, without "
            f"--parameters, needs a curve of {min(TOKENS_LAW.num_distinct.values())} checkpoints."
        )
    return "tokens"


def _rows_of_families(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[Fitted]:
    """Laws between runs, of each family by itself; runs of families too small for a law are named."""
    families = of_families(table, num_sizes=_FEWEST_SIZES)
    for family, part in families.parts.items():
        for found in _between_rows(part, [one for one in series if part.of_series(one)], wanted, law):
            yield replace(found, row={"family": family} | found.row) if len(families.parts) > 1 else found
    for run, reason in families.left_out.items():
        yield Fitted(_named(Series("", ""), law=law, run=run) | _predicted(None, None, wanted.level, reason=reason))


def _between_rows(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[Fitted]:
    """Laws between runs, of their ends."""
    at = None
    if wanted.parameters is not None and wanted.tokens is not None:
        at = place(wanted.parameters, wanted.tokens)
    guessed = _guessed(table)
    known: dict[Series, LawFit] = {}

    def law_of(loss: Series) -> LawFit:
        """A loss's fit, once for itself and for the scores that start from it."""
        if loss not in known:
            points, target = final_points(table, loss), Target.of_metric(loss.metric)
            if law == "auto":
                known[loss] = fit_best(points, target=target, draws=wanted.draws)
            else:
                known[loss] = with_intervals(fit_law(LAWS[law], points, target=target), draws=wanted.draws)
        return known[loss]

    for one in series:
        reason = guessed.get(one)
        if reason is None and not finished_curves(table, one):
            reason = "no finished run of known size has it."
        if reason is not None:
            yield Fitted(_named(one, law=law) | _predicted(None, None, wanted.level, reason=reason))
        elif is_loss_metric(one.metric) and law in _TWO_STEP_LAWS:
            fit = law_of(one)
            yield Fitted(_row(fit, one, level=wanted.level) | _predicted(fit, at, wanted.level), fit, at, fit.points)
        elif is_accuracy(one.metric) and law in _DIRECT_LAWS:
            fit = _direct(table, one, law, wanted.draws)
            yield Fitted(_row(fit, one, level=wanted.level) | _predicted(fit, at, wanted.level), fit, at, fit.points)
        elif is_accuracy(one.metric) and (loss := _loss_of(table, one, law_of, LINKS[wanted.link])) is not None:
            chained = fit_two_step(
                table, loss=loss, score=one, link=LINKS[wanted.link], draws=wanted.draws, step1=law_of(loss)
            )
            row = _chained_row(chained, one, loss, level=wanted.level) | _predicted(chained, at, wanted.level)
            yield Fitted(row, chained, at, final_points(table, one))
        elif is_accuracy(one.metric) and law == "auto":
            fit = _direct(table, one, law, wanted.draws)
            yield Fitted(_row(fit, one, level=wanted.level) | _predicted(fit, at, wanted.level), fit, at, fit.points)
        elif is_accuracy(one.metric):
            reason = f"the law {law} is one of the loss, and no loss was measured with it that the law fits. Try "
            yield Fitted(_named(one, law=law) | _predicted(None, None, wanted.level, reason=f"{reason}--law direct."))


def _guessed(table: CurveTable) -> dict[Series, str]:
    """Scores at chance, with the reason: over time, or from model to model where only ends are known."""
    scores = [one for one in table.series() if is_accuracy(one.metric)]
    finals = [one for one in scores if has_finals_only(table, one)]
    curves = [one for one in scores if one not in finals]
    over_time = at_chance(table, curves, references=list(table.runs)) if curves else {}
    return over_time | finals_at_chance(table, finals)


def _direct(table: CurveTable, score: Series, law: str, draws: int) -> LawFit:
    target = Target("log_score", next(curve.chance for curve in table.of_series(score)))
    points = final_points(table, score)
    if law == "auto":
        return fit_direct(points, target=target, draws=draws)
    return with_intervals(fit_law(LAWS[law], points, target=target), draws=draws)


def _single_rows(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[Fitted]:
    """The law in tokens, for each run its own."""
    scores = [one for one in series if is_accuracy(one.metric)]
    guessed = {run: at_chance(table, scores, references=[run]) if scores else {} for run in table.runs}
    for one in series:
        if not (is_loss_metric(one.metric) or is_accuracy(one.metric)):
            continue
        for curve in table.of_series(one):
            if one in guessed[curve.run]:
                reason = guessed[curve.run][one]
                yield Fitted(_named(one, law=law, run=curve.run) | _predicted(None, None, wanted.level, reason=reason))
                continue
            fit = fit_single_run(curve, draws=wanted.draws)
            tokens = wanted.tokens or table.runs[curve.run].total_tokens
            at = {"tokens": tokens} if tokens else None
            yield Fitted(
                _row(fit, one, run=curve.run, level=wanted.level) | _predicted(fit, at, wanted.level),
                fit,
                at,
                fit.points,
            )


def _annealing_rows(table: CurveTable, series: list[Series], wanted: WantedFits, law: str) -> Iterator[Fitted]:
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
        row = _row(found.fit, one, level=wanted.level)
        coming = [curve for curve in scheduled if curve.curve.step_C[-1] < len(curve.rate_S)]
        for curve in coming:
            end = found.place(curve.rate_S, len(curve.rate_S), parameters=curve.parameters)
            predicted = row | {"run": curve.curve.run} | _predicted(found.fit, end, wanted.level)
            yield Fitted(predicted, found.fit, end, found.fit.points)
        if not coming:
            yield Fitted(row | _predicted(found.fit, None, wanted.level), found.fit, None, found.fit.points)


def _within(curve: TaskCurve, num_steps: int) -> TaskCurve:
    return curve.where((curve.step_C >= 1) & (curve.step_C <= num_steps))


def _loss_of(table: CurveTable, score: Series, law_of: Callable[[Series], LawFit], link: Link) -> Series | None:
    """The loss that a link can start from: of the same task and prompts, else the text's loss that is nearest to it."""
    for metric in LOSSES:
        loss = Series(score.task, metric, score.num_fewshot)
        if any(curve.domain != LOSS_DOMAIN for curve in table.of_series(loss)):
            return loss
    texts = [
        one
        for one in table.series()
        if plain(one.metric) in LOSSES
        and (is_text_loss(one.metric) or all(curve.domain == LOSS_DOMAIN for curve in table.of_series(one)))
        and finished_curves(table, one)
        and law_of(one).refused is None
    ]
    return nearest_loss(table, score, losses=texts, link=link)


def _named(series: Series, *, law: str, run: str | None = None) -> dict[str, Any]:
    shots = series.num_fewshot if series.num_fewshot >= 0 else None
    return {"law": law, "run": run, "task": series.task, "metric": series.metric, "shots": shots}


def _row(
    fit: LawFit, series: Series, *, level: float, law: str | None = None, run: str | None = None
) -> dict[str, Any]:
    row = _named(series, law=law or fit.law.name, run=run) | {"points": len(fit.points)}
    for name in fit.law.parameters:
        low, high = fit.parameter_interval(name, level=level)
        row |= {name: fit.parameter(name), f"{name}_low": low, f"{name}_high": high}
    return row


def _chained_row(fit: TwoStepFit, score: Series, loss: Series, *, level: float) -> dict[str, Any]:
    row = _row(fit.step1, score, law=f"{fit.step1.law.name} + {fit.step2.link.name}", level=level)
    row["through"] = loss.metric if loss.task == score.task else str(loss)
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
