"""A task from the loss alone, and how far its siblings are to be believed beside that.

Siblings do not always help: parts of one benchmark swing together, and then a task is predicted worse from them than
from the loss. Which is better is found on the runs that are learnt from, each held out in turn as the run that is asked
about is: where that one is larger than all others, only from smaller ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from probes.dynamics.benchmarks import parts_of_large_benchmarks
from probes.dynamics.gp import Process, Scores, Term, fit, scale_of
from probes.dynamics.table import Series

FEWEST_ROWS = 8
"""Scores that anything is learnt from."""

_PRIOR_RUNS = 3.0
"""Siblings are believed at first, as if in so many held-out runs they had been right where the loss alone was not."""
_SAME_SIZE = 0.01

LOSS_TERMS = (
    Term(name="constant", kind="constant"),
    Term(name="loss", kind="linear", columns=((0,),)),
    Term(name="loss bend", kind="product", columns=((0, 0),), deviation=0.3),
    Term(name="smooth", kind="smooth", columns=((0,),), deviation=0.3, lengths=(1.5,)),
    Term(name="run", kind="constant", deviation=0.1, within=(1,)),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Both models on one task of runs that neither had learnt; H held-out scores, in units of the task's spread.

    Attributes:
        runs: how many runs were held out.
        run_H: which of them a score is of.
        siblings_H: true scores less those from siblings and loss.
        alone_H: true scores less those from the loss alone.
        spread: of the task, in the judged unit.
    """

    runs: int
    run_H: np.ndarray
    siblings_H: np.ndarray
    alone_H: np.ndarray
    spread: float


@dataclass(frozen=True, slots=True)
class Weighed:
    """How far siblings are believed, and on what grounds.

    Attributes:
        share: of the model with siblings in the prediction; the rest is the loss alone.
        runs: held out for it; 0 where that could not be done.
        parts: tasks that were weighed together.
        siblings_error: mean absolute error of the model with siblings there, in the judged unit.
        alone_error: the same of the loss alone.
    """

    share: float
    runs: int
    parts: int
    siblings_error: float
    alone_error: float


def loss_and_run(scores: Scores) -> Scores:
    """The same scores over the loss and the run's index, the last two features."""
    return Scores(scores.feature_PF[:, -2:], scores.value_P, scores.noise_P)


def fit_loss_alone(tasks: Sequence[Scores]) -> Process:
    """Hyper-parameters that tasks share; features as in `loss_and_run`."""
    return fit(LOSS_TERMS, [loss_and_run(scores) for scores in tasks])


def try_both(siblings: Process, alone: Process, known: Scores, *, size_P: np.ndarray, size: float | None) -> Trial:
    """Predicts each learnt run from the others by both models.

    Args:
        siblings: over siblings and loss.
        alone: over the loss.
        known: what was learnt; the last feature is the run.
        size_P: parameters of each score's run; nan where unknown.
        size: of the run that is asked about.
    """
    run_P, spread = known.feature_PF[:, -1], scale_of(known)[1]
    found: list[Sequence[np.ndarray]] = []
    for run in np.unique(run_P):
        held_P = run_P == run
        kept_P = ~held_P & is_comparable(size_P, size_P[held_P][0], size)
        if np.sum(kept_P) < FEWEST_ROWS:
            continue
        others, own = _part(known, kept_P), _part(known, held_P)
        from_siblings, _ = siblings.posterior(others, own)
        from_loss, _ = alone.posterior(loss_and_run(others), loss_and_run(own))
        errors = [(own.value_P - value_H) / spread for value_H in (from_siblings, from_loss)]
        found.append([run_P[held_P], *errors])
    if not found:
        return Trial(0, np.zeros(0), np.zeros(0), np.zeros(0), spread)
    run_H, siblings_H, alone_H = (np.concatenate(column) for column in zip(*found, strict=True))
    return Trial(len(found), run_H, siblings_H, alone_H, spread)


def weigh(trials: Sequence[Trial], targets: Sequence[Series], measured: Collection[Series]) -> list[Weighed]:
    """How far each task's siblings are believed: the best over held-out runs, drawn towards 1.

    A task stands for itself. Parts of a large benchmark are weighed together, so that many parts need few runs.

    Args:
        trials: one a target.
        targets: the tasks asked about.
        measured: their siblings, by which a large benchmark is known.
    """
    part_of = parts_of_large_benchmarks(dict.fromkeys([*targets, *measured]))
    groups: dict[str | Series, list[Trial]] = {}
    for trial, target in zip(trials, targets, strict=True):
        groups.setdefault(part_of.get(target, target), []).append(trial)
    weighed = {name: _weigh(group) for name, group in groups.items()}
    return [weighed[part_of.get(target, target)] for target in targets]


def _weigh(trials: Sequence[Trial]) -> Weighed:
    """Least squares of w · siblings + (1 − w) · alone over the means of runs, with pseudo-runs for w = 1."""
    along = across = square = 0.0
    runs = 0
    for trial in trials:
        for run in np.unique(trial.run_H):
            alone = trial.alone_H[trial.run_H == run]
            apart = trial.siblings_H[trial.run_H == run] - alone
            along -= float(np.mean(alone * apart))
            across += float(np.mean(apart**2))
            square += float(np.mean(alone**2))
            runs += 1
    if not runs or not square:
        return Weighed(1.0, 0, len(trials), float("nan"), float("nan"))
    prior = _PRIOR_RUNS * square / runs
    errors = [
        float(np.mean([trial.spread * np.abs(getattr(trial, name)).mean() for trial in trials if trial.runs]))
        for name in ("siblings_H", "alone_H")
    ]
    weight = float(np.clip((along + prior) / (across + prior), 0.0, 1.0))
    return Weighed(weight, max(trial.runs for trial in trials), len(trials), *errors)


def is_comparable(size_P: np.ndarray, held_size: float, size: float | None) -> np.ndarray:
    """What may be learnt from when a run of `held_size` stands for one of `size`."""
    if size is None or not np.isfinite(size_P).all():
        return np.ones(len(size_P), bool)
    if size > size_P.max() * (1 + _SAME_SIZE):
        return np.asarray(size_P < held_size * (1 - _SAME_SIZE))
    if np.abs(size_P / size - 1).min() > _SAME_SIZE:
        return np.asarray(np.abs(size_P / held_size - 1) > _SAME_SIZE)
    return np.ones(len(size_P), bool)


def _part(scores: Scores, keep_P: np.ndarray) -> Scores:
    return Scores(scores.feature_PF[keep_P], scores.value_P[keep_P], scores.noise_P[keep_P])
