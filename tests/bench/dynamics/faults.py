"""Faults that are put into the curves of a healthy run, for the benchmark of verdicts. Nothing is judged here.

A fault begins after a checkpoint and goes on to the end of the run, a dip excepted. It changes the smooth course of a
curve and keeps the curve's own checkpoint noise, so that no run is called for being too regular. All metrics of a task
change together, and losses stay as they were unless a fault says otherwise: the scores alone must show it.

"What a task has" is its score above chance, or, for bits per byte, what it has gained since the first checkpoint that
counts: 0.5 % of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.dynamics.metrics import ACCURACIES, BITS_PER_BYTE
from probes.dynamics.noise import judged_stderr, judged_value, noise_of, smooth, unjudged_value
from probes.dynamics.surface import relevant
from probes.dynamics.table import LOSS_DOMAIN, TaskCurve
from probes.dynamics.trust import is_ability
from probes.dynamics.watched import is_loss

DIP_NOISES = 4.0
"""Of a single dip: what a noisy task of a healthy run does now and then, and no more."""
SLOW_LOSS, SLOW_CHECKPOINTS = 0.08, 10
CONTAMINATION = 0.10
LOUDER = 3.0

_ROOM_NOISES = 10.0
"""What a task must have, in units of its checkpoint noise, to be one that falls: half of less is hardly a fault."""
_SCORES = (*ACCURACIES, *BITS_PER_BYTE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault is put.

    Attributes:
        after: tokens of the last healthy checkpoint.
        task: of the faults of one task, and the first of those that are swapped.
        other: the second of those that are swapped.
        domain: of the faults of a domain.
    """

    after: float
    task: str
    other: str
    domain: str


@dataclass(frozen=True, slots=True)
class Course:
    """A curve taken apart, in the unit in which more is better; C checkpoints.

    Attributes:
        smooth_C: the curve without its checkpoint noise.
        noise_C: what was taken away.
        has_C: how far the smooth curve is above chance (or above where it began).
        after_C: whether a checkpoint comes after the last healthy one.
        last: index of the last healthy checkpoint.
    """

    smooth_C: np.ndarray
    noise_C: np.ndarray
    has_C: np.ndarray
    after_C: np.ndarray
    last: int


Injector = Callable[[Sequence[TaskCurve], Place], list[TaskCurve]]


def course_of(curve: TaskCurve, after: float) -> Course:
    """Takes a curve apart at a checkpoint."""
    judged_C = judged_value(curve)
    smooth_C = smooth(replace(curve, value_C=judged_C, stderr_C=judged_stderr(curve))).value_C
    counts_C = relevant_mask(curve)
    begin = float(smooth_C[counts_C][0]) if counts_C.any() else float(smooth_C[0])
    floor = curve.chance if np.isfinite(curve.chance) else begin
    after_C = curve.tokens_C > after * (1 + 1e-9)
    last = max(int(np.sum(~after_C)) - 1, 0)
    return Course(smooth_C, judged_C - smooth_C, np.maximum(smooth_C - floor, 0.0), after_C, last)


def relevant_mask(curve: TaskCurve) -> np.ndarray:
    """Which checkpoints count: not those of the first 0.5 %."""
    return np.isin(curve.tokens_C, relevant(curve, None).tokens_C)


def can_fall(curves: Sequence[TaskCurve], after: float) -> list[tuple[str, str]]:
    """Tasks, each with its domain, that have enough to lose at a checkpoint by each of their metrics."""
    enough: dict[tuple[str, str], bool] = {}
    for curve in curves:
        if _is_score(curve):
            known = curve.until(after)
            noise = noise_of(known) if len(known) else float("nan")
            course = course_of(curve, after)
            has = bool(course.has_C[course.last] >= _ROOM_NOISES * noise)
            key = (curve.task, curve.domain)
            enough[key] = enough.get(key, True) and has
    return [key for key, has in enough.items() if has]


def place_at(curves: Sequence[TaskCurve], after: float, number: int) -> Place | None:
    """The place after a checkpoint; `number` turns through tasks and domains. None without two tasks that can fall."""
    found = can_fall(curves, after)
    if len(found) < 2:
        return None
    domains = list(dict.fromkeys(domain for _, domain in found))
    task, other = found[number % len(found)], found[(number + 1) % len(found)]
    return Place(after, task[0], other[0], domains[number % len(domains)])


def fall(share: float, whose: str) -> Injector:
    """`task`, `domain` or `all` lose a share of what they have."""

    def lost(course: Course) -> np.ndarray:
        return share * course.has_C

    return lambda curves, place: _lowered(curves, place, whose, lost)


def slow_loss(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """All tasks lose 8 % of what they have, evenly over ten checkpoints."""

    def lost(course: Course) -> np.ndarray:
        number_C = np.cumsum(course.after_C)
        return SLOW_LOSS * np.minimum(number_C / SLOW_CHECKPOINTS, 1.0) * course.has_C

    return _lowered(curves, place, "all", lost)


def contamination(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """All tasks of a domain gain .10; accuracies end at 1."""

    def lost(course: Course) -> np.ndarray:
        return np.full(len(course.smooth_C), -CONTAMINATION)

    raised = _lowered(curves, place, "domain", lost)
    return [
        replace(curve, value_C=np.minimum(curve.value_C, 1.0)) if curve.metric in ACCURACIES else curve
        for curve in raised
    ]


def dip(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """One task is lower by four times its noise at one checkpoint."""
    found = []
    for curve in curves:
        if _is_score(curve) and curve.task == place.task:
            course = course_of(curve, place.after)
            only_C = course.after_C & (np.cumsum(course.after_C) == 1)
            curve = _with(curve, judged_value(curve) - only_C * DIP_NOISES * noise_of(curve), course)
        found.append(curve)
    return found


def counted(factor: float) -> Injector:
    """After a resume each token is counted as `factor` tokens; steps and scores are right."""

    def inject(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
        found = []
        for curve in curves:
            extra_C = np.maximum(curve.tokens_C - place.after, 0.0)
            found.append(replace(curve, tokens_C=curve.tokens_C + (factor - 1.0) * extra_C))
        return found

    return inject


def louder(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """The noise of all tasks is three times larger."""
    return _changed(curves, place, lambda course: course.smooth_C + LOUDER * course.noise_C)


def swapped(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """Two tasks have each other's scores, of the same metric or else of accuracy."""
    scores = {(curve.task, curve.metric, curve.num_fewshot): curve for curve in curves if _is_score(curve)}
    found = []
    for curve in curves:
        if _is_score(curve) and curve.task in (place.task, place.other):
            task = place.other if curve.task == place.task else place.task
            other = scores.get((task, curve.metric, curve.num_fewshot)) or scores.get((task, "acc", curve.num_fewshot))
            if other is not None:
                both_C = np.isin(curve.tokens_C, other.tokens_C) & (curve.tokens_C > place.after * (1 + 1e-9))
                value_C = curve.value_C.copy()
                value_C[both_C] = other.value_C[np.searchsorted(other.tokens_C, curve.tokens_C[both_C])]
                curve = replace(curve, value_C=value_C)
        found.append(curve)
    return found


def plateau(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """Tasks and losses stay where they were, but for their noise."""
    return _changed(curves, place, lambda course: course.smooth_C[course.last] + course.noise_C, losses=True)


def frozen(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """All scores are those of the last healthy checkpoint, as the same weights give."""
    found = []
    for curve in curves:
        after_C = curve.tokens_C > place.after * (1 + 1e-9)
        last = max(int(np.sum(~after_C)) - 1, 0)
        found.append(replace(curve, value_C=np.where(after_C, curve.value_C[last], curve.value_C)))
    return found


def regress(curves: Sequence[TaskCurve], place: Place) -> list[TaskCurve]:
    """Tasks go back the way they came, one checkpoint a checkpoint, while the loss improves as it did."""

    def back(course: Course) -> np.ndarray:
        back_C = np.clip(2 * course.last - np.arange(len(course.smooth_C)), 0, course.last)
        return course.smooth_C[back_C] + course.noise_C

    return _changed(curves, place, back)


def _lowered(
    curves: Sequence[TaskCurve], place: Place, whose: str, lost: Callable[[Course], np.ndarray]
) -> list[TaskCurve]:
    found = []
    for curve in curves:
        concerned = {"task": curve.task == place.task, "domain": curve.domain == place.domain, "all": True}[whose]
        if _is_score(curve) and concerned:
            course = course_of(curve, place.after)
            curve = _with(curve, judged_value(curve) - lost(course), course)
        found.append(curve)
    return found


def _changed(
    curves: Sequence[TaskCurve], place: Place, new: Callable[[Course], np.ndarray], *, losses: bool = False
) -> list[TaskCurve]:
    found = []
    for curve in curves:
        if _is_score(curve) or (losses and is_loss(curve)):
            course = course_of(curve, place.after)
            curve = _with(curve, new(course), course)
        found.append(curve)
    return found


def _with(curve: TaskCurve, judged_C: np.ndarray, course: Course) -> TaskCurve:
    return replace(curve, value_C=np.where(course.after_C, unjudged_value(curve, judged_C), curve.value_C))


def _is_score(curve: TaskCurve) -> bool:
    return is_ability(curve) and curve.domain != LOSS_DOMAIN and curve.metric in _SCORES


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by the name it has in the tables.

    Attributes:
        name: in words.
        inject: makes the curves.
        is_fall: whether `act` must follow within two checkpoints.
    """

    name: str
    inject: Injector
    is_fall: bool = False


FALLS = (
    Fault("one task falls to half", fall(0.5, "task"), is_fall=True),
    Fault("one task falls to chance", fall(1.0, "task"), is_fall=True),
    Fault("a domain falls to half", fall(0.5, "domain"), is_fall=True),
    Fault("a domain falls to chance", fall(1.0, "domain"), is_fall=True),
    Fault("all tasks fall to chance", fall(1.0, "all"), is_fall=True),
)
OTHERS = (
    Fault("one task dips once, by 4 times its noise", dip),
    Fault("tokens counted by half after a resume", counted(0.5)),
    Fault("tokens counted twice after a resume", counted(2.0)),
    Fault("+.10 on all tasks of a domain", contamination),
    Fault("noise three times larger", louder),
    Fault("scores of two tasks swapped", swapped),
    Fault("slow loss of 8% over ten checkpoints", slow_loss),
    Fault("all tasks lose 5%", fall(0.05, "all")),
    Fault("all tasks lose 10%", fall(0.10, "all")),
    Fault("all tasks lose 20%", fall(0.20, "all")),
    Fault("plateau of tasks and loss", plateau),
    Fault("frozen: the very same scores", frozen),
    Fault("tasks go back, the loss improves", regress),
)
