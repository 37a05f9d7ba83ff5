"""A task that was not measured, from tasks that were: its score as a function of its siblings' and of the loss.

Learnt on other runs (other sizes) in which both were measured. A line through each sibling, one through their mean, a
line and a bend through the loss, and a smooth function of the last two: a Gaussian process whose hyper-parameters all
tasks share. Sizes and tokens are left out on purpose: siblings and loss carry them, and extrapolate better. Where
siblings do not help, `probes.dynamics.loss_alone` gives the loss alone more weight.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from probes.dynamics.chance import at_chance
from probes.dynamics.gp import Process, Scores, Term, fit
from probes.dynamics.loss_alone import (
    FEWEST_ROWS,
    Weighed,
    fit_loss_alone,
    loss_and_run,
    try_both,
    weigh,
)
from probes.dynamics.noise import judged_value, noise_of, unjudged_value
from probes.dynamics.surface import relevant
from probes.dynamics.table import CurveTable, Series, TaskCurve
from probes.dynamics.tasks import is_twin

CHECKPOINTS = 10
"""Checkpoints a run that are learnt from, evenly over log tokens."""

SINCE_SHARE = 0.05
"""Of a run's tokens: what comes before says little of what comes later."""


_FEWEST_SIBLINGS = 2
_SHOWN_SIBLINGS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class UnseenTask:
    """The curve of a task in a run that did not measure it; Q checkpoints, or a refusal.

    Attributes:
        run: the run.
        series: the task.
        siblings: what it was predicted from.
        siblings_weight: share of the prediction from siblings and loss; the rest is from the loss alone.
        method: what it was predicted from and why, in words.
        tokens_Q: where.
        value_Q: the curve, in the metric's unit.
        low_Q: lower end of the interval for a score there.
        high_Q: its upper end.
        alone_Q: the curve as the loss alone has it.
        refused: why nothing is predicted; None if something is.
    """

    run: str
    series: Series
    siblings: tuple[Series, ...] = ()
    siblings_weight: float = float("nan")
    method: str = ""
    tokens_Q: np.ndarray
    value_Q: np.ndarray
    low_Q: np.ndarray
    high_Q: np.ndarray
    alone_Q: np.ndarray = field(default_factory=lambda: np.zeros(0))
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Scores of several series at checkpoints where all were measured; R rows.

    Attributes:
        run_R: index of the run.
        tokens_R: float64.
        value_RS: judged scores, S series.
    """

    run_R: np.ndarray
    tokens_R: np.ndarray
    value_RS: np.ndarray


def kernel_terms(num_siblings: int) -> tuple[Term, ...]:
    """Over the siblings' standardised scores, their mean, the loss, and the run's index (the last four columns)."""
    mean, loss, run = num_siblings, num_siblings + 1, num_siblings + 2
    return (
        Term(name="constant", kind="constant"),
        Term(name="each sibling", kind="linear", columns=(tuple(range(num_siblings)),), deviation=0.5),
        Term(name="their mean", kind="linear", columns=((mean,),), deviation=0.7),
        Term(name="loss", kind="linear", columns=((loss,),), deviation=0.7),
        Term(name="loss bend", kind="product", columns=((loss, loss),), deviation=0.3),
        Term(name="smooth", kind="smooth", columns=((mean,), (loss,)), deviation=0.3, lengths=(1.5, 1.5)),
        Term(name="run", kind="constant", deviation=0.1, within=(run,)),
    )


def predict_unseen(
    table: CurveTable,
    run: str,
    targets: Collection[Series],
    *,
    measured: Sequence[Series],
    loss: Series,
    learn_from: Sequence[str],
    level: float = 0.8,
    average_over: int = 1,
    since_share: float = SINCE_SHARE,
    even_at_chance: bool = False,
    fits: dict[Hashable, Process] | None = None,
) -> list[UnseenTask]:
    """The curves of tasks over a run, from those it measured.

    Args:
        table: of the run only `measured` and `loss` are looked at, so that a task may be held out that is there.
        run: the run.
        targets: the tasks wanted.
        measured: siblings; a target itself and other splits of it are never among its own.
        loss: the language-modelling loss or perplexity of the same checkpoints.
        learn_from: runs that measured targets, siblings and loss.
        level: of the intervals.
        average_over: checkpoints of a moving average over every curve before anything else (the ladder's is 5).
        since_share: of a run's tokens, before which nothing is learnt or predicted.
        even_at_chance: predict what would be refused for being at chance, too: to measure the method.
        fits: what was fitted is kept here and found again: for several runs that are learnt from the same others.
    """
    others = [name for name in learn_from if name != run]
    results: dict[Series, UnseenTask] = {}
    learnt: list[_Learnt] = []
    guessed = {} if even_at_chance else at_chance(table, targets, references=others)
    for target in targets:
        siblings = [one for one in measured if not is_twin(one.task, target.task)]
        why = guessed.get(target) or _why_not(table, target, siblings, others)
        if why is None:
            rows = aligned(table, others, [*siblings, loss, target], average_over=average_over, since_share=since_share)
            at = aligned(
                table, [run], [*siblings, loss], average_over=average_over, since_share=since_share, checkpoints=None
            )
            if len(rows.run_R) < FEWEST_ROWS or not len(at.run_R):
                why = "too few checkpoints at which the target, its siblings and the loss were all measured."
        if why is not None:
            empty = np.zeros(0)
            results[target] = UnseenTask(
                run=run, series=target, tokens_Q=empty, value_Q=empty, low_Q=empty, high_Q=empty, refused=why
            )
            continue
        of_target = [curve for name in others if (curve := table.get(name, target)) is not None]
        noise = float(np.median([value for curve in of_target if np.isfinite(value := noise_of(curve))] or [np.nan]))
        known, asked = _scores(rows, at, noise=noise / np.sqrt(average_over))
        sizes = np.array([table.runs[name].parameters or np.nan for name in others])
        learnt.append(_Learnt(target, siblings, known, asked, at.tokens_R, of_target[0], sizes[rows.run_R]))
    if learnt:
        size = table.runs[run].parameters
        processes = _processes(learnt, {} if fits is None else fits)
        found = _read(learnt, processes, run=run, size=size, measured=measured, loss=loss, level=level)
        results |= {one.series: one for one in found}
    return [results[target] for target in targets]


def aligned(
    table: CurveTable,
    runs: Sequence[str],
    series: Sequence[Series],
    *,
    average_over: int = 1,
    since_share: float = SINCE_SHARE,
    checkpoints: int | None = CHECKPOINTS,
) -> Rows:
    """Judged scores at the checkpoints that all series of a run share, the early ones left out.

    Args:
        table: the curves.
        runs: those that lack a series give no rows.
        series: the columns.
        average_over: as in `predict_unseen`.
        since_share: as in `predict_unseen`.
        checkpoints: at most so many a run, evenly over log tokens; None takes all.
    """
    indices, tokens, values = [], [], []
    for index, name in enumerate(runs):
        curves = [table.get(name, one) for one in series]
        present = [relevant(c, table.runs[name].total_tokens) for c in curves if c is not None]
        if len(present) < len(series) or not all(map(len, present)):
            continue
        shared = present[0].tokens_C
        for curve in present[1:]:
            shared = np.intersect1d(shared, curve.tokens_C)
        if not len(shared):
            continue
        if checkpoints is not None:
            position = np.log(shared)
            wanted = np.linspace(np.log(since_share * shared[-1]), position[-1], checkpoints)
            shared = shared[np.unique(np.abs(position[:, None] - wanted).argmin(axis=0))]
        else:
            shared = shared[shared >= since_share * shared[-1]]
        columns = [_averaged(c, average_over)[np.searchsorted(c.tokens_C, shared)] for c in present]
        indices.append(np.full(len(shared), index))
        tokens.append(shared)
        values.append(np.column_stack(columns))
    if not values:
        return Rows(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, len(series))))
    return Rows(np.concatenate(indices), np.concatenate(tokens), np.concatenate(values))


def _averaged(curve: TaskCurve, over: int) -> np.ndarray:
    value_C = judged_value(curve)
    if over <= 1 or len(value_C) < over:
        return value_C
    padded = np.pad(value_C, (over // 2, (over - 1) // 2), mode="edge")
    return np.convolve(padded, np.full(over, 1.0 / over), mode="valid")


def _scores(rows: Rows, at: Rows, *, noise: float) -> tuple[Scores, Scores]:
    """What is known and what is asked, with features standardised by what is known; the target is the last column."""
    known_RS, asked_QS = rows.value_RS[:, :-1], at.value_RS
    centre_S, spread_S = known_RS.mean(axis=0), np.maximum(known_RS.std(axis=0), 1e-9)

    def features(value_RS: np.ndarray, run_R: np.ndarray, shift: int) -> np.ndarray:
        standard_RS = (value_RS - centre_S) / spread_S
        sibling_RS, loss_R = standard_RS[:, :-1], standard_RS[:, -1]
        scaled_RS = sibling_RS / np.sqrt(sibling_RS.shape[1])
        return np.column_stack([scaled_RS, sibling_RS.mean(axis=1), loss_R, run_R + shift])

    target_R = rows.value_RS[:, -1]
    level = noise if np.isfinite(noise) else 0.1 * float(target_R.std())
    level = max(level, 1e-6)
    known = Scores(features(known_RS, rows.run_R, 0), target_R, np.full(len(target_R), level))
    asked = Scores(features(asked_QS, at.run_R, 10_000), np.zeros(len(asked_QS)), np.full(len(asked_QS), level))
    return known, asked


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What one target is predicted from: scores known and asked, where, a curve like it, and sizes of the known."""

    target: Series
    siblings: list[Series]
    known: Scores
    asked: Scores
    tokens_Q: np.ndarray
    like: TaskCurve
    size_P: np.ndarray


def _processes(learnt: Sequence[_Learnt], fits: dict[Hashable, Process]) -> dict[int, Process]:
    """By the number of siblings, the process of the tasks that have so many; by 0 that of the loss alone."""
    found = {}
    for count in {0, *(len(one.siblings) for one in learnt)}:
        group = [one.known for one in learnt if count in (0, len(one.siblings))]
        key = (count, *(part.tobytes() for one in group for part in (one.feature_PF, one.value_P, one.noise_P)))
        if key not in fits:
            fits[key] = fit(kernel_terms(count), group) if count else fit_loss_alone(group)
        found[count] = fits[key]
    return found


def _read(
    learnt: Sequence[_Learnt],
    processes: Mapping[int, Process],
    *,
    run: str,
    size: float | None,
    measured: Sequence[Series],
    loss: Series,
    level: float,
) -> list[UnseenTask]:
    """Predictions by siblings and loss and by the loss alone, put together as held-out runs have it."""
    alone = processes[0]
    trials = [try_both(processes[len(one.siblings)], alone, one.known, size_P=one.size_P, size=size) for one in learnt]
    weights = weigh(trials, [one.target for one in learnt], measured)
    found = []
    for one, weighed in zip(learnt, weights, strict=True):
        weight = weighed.share
        with_Q, spread_Q = _posterior(processes[len(one.siblings)], one.known, one.asked)
        alone_Q, alone_spread_Q = _posterior(alone, loss_and_run(one.known), loss_and_run(one.asked))
        mean_Q = weight * with_Q + (1 - weight) * alone_Q
        # The second moment of a mixture of the two: what they disagree on is uncertain.
        variance_Q = weight * (spread_Q**2 + with_Q**2) + (1 - weight) * (alone_spread_Q**2 + alone_Q**2) - mean_Q**2
        reach_Q = stats.norm.ppf(0.5 + level / 2.0) * np.sqrt(np.maximum(variance_Q, 0.0))
        ends = [unjudged_value(one.like, mean_Q + shift_Q) for shift_Q in (-reach_Q, reach_Q)]
        found.append(
            UnseenTask(
                run=run,
                series=one.target,
                siblings=tuple(one.siblings),
                siblings_weight=weight,
                method=_method(one.siblings, loss, weighed),
                tokens_Q=one.tokens_Q,
                value_Q=unjudged_value(one.like, mean_Q),
                low_Q=np.minimum(*ends),
                high_Q=np.maximum(*ends),
                alone_Q=unjudged_value(one.like, alone_Q),
            )
        )
    return found


def _posterior(process: Process, known: Scores, asked: Scores) -> tuple[np.ndarray, np.ndarray]:
    mean_Q, covariance_QQ = process.posterior(known, asked)
    return mean_Q, process.deviation(covariance_QQ, asked)


def _method(siblings: Sequence[Series], loss: Series, weighed: Weighed) -> str:
    """What was used and why, in words."""
    names = ", ".join(one.task for one in siblings[:_SHOWN_SIBLINGS])
    names += f" and {len(siblings) - _SHOWN_SIBLINGS} more" if len(siblings) > _SHOWN_SIBLINGS else ""
    both = f"the siblings {names} and the loss {loss.task}"
    if not weighed.runs:
        return f"{both}; there are too few other runs to try the loss alone"
    where = f"{weighed.runs} held-out run(s)" + (f" and {weighed.parts} parts" if weighed.parts > 1 else "")
    why = f"error on {where}: {weighed.siblings_error:.3g} with siblings, {weighed.alone_error:.3g} with the loss alone"
    shares = f"{both} ({weighed.share:.0%}) and from the loss alone ({1 - weighed.share:.0%})"
    if weighed.share > 0.995:
        shares = both
    elif weighed.share < 0.005:
        shares = f"the loss {loss.task} alone"
    return f"{shares}; {why}"


def _why_not(table: CurveTable, target: Series, siblings: Sequence[Series], runs: Sequence[str]) -> str | None:
    if len(siblings) < _FEWEST_SIBLINGS:
        return f"{len(siblings)} sibling(s) measured; at least {_FEWEST_SIBLINGS} are needed."
    curves = [curve for name in runs if (curve := table.get(name, target)) is not None]
    if not curves:
        return "no other run has measured it."
    return None
