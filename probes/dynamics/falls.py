"""How much of what a task had learnt is gone, by its own curve alone: no model, no other run.

The same rule holds a run beside references, beside smaller runs and alone. What a task had is its best mean of three
checkpoints before those that are judged, above a floor that nobody can lose. Since the best is never forgotten, a fall
that lasts stays a fall however long ago it happened. A swing that was made good again is noise of this task, and only
what lies far beyond its largest is more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.dynamics.evidence import ACT, WATCH, Evidence
from probes.dynamics.expectation import over_spread
from probes.dynamics.noise import checkpoint_noise, judged_stderr, judged_value, unjudged_value
from probes.dynamics.table import CurveTable, Series, TaskCurve
from probes.dynamics.trust import judge
from probes.dynamics.watched import until_the_best

FEWEST_BEFORE = 5
"""Checkpoints before those that are judged: for a best mean of three and a noise."""
_MEAN_OF = 3

_CLIPPED = 5.0
"""Of a task's fall in units of its noise, where tasks are taken together: one task alone cannot speak for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """From where a fall is one, all of them to be reached.

    Attributes:
        noises: in units of the task's checkpoint noise; together, over the spread of the sum.
        swings: in units of the task's largest swing that was made good again.
        lost: share of what the task had above its floor.
    """

    noises: float
    swings: float
    lost: float


ONE_TASK = {
    (ACT, 1): Limits(noises=8.0, swings=2.0, lost=0.4),
    (ACT, 2): Limits(noises=3.5, swings=1.0, lost=0.3),
    (WATCH, 1): Limits(noises=5.0, swings=1.25, lost=0.05),
    (WATCH, 2): Limits(noises=4.0, swings=1.0, lost=0.05),
}
TOGETHER = {
    (ACT, 1): Limits(noises=5.5, swings=0.0, lost=0.2),
    (ACT, 2): Limits(noises=4.5, swings=0.0, lost=0.15),
    (WATCH, 1): Limits(noises=4.5, swings=0.0, lost=0.05),
    (WATCH, 2): Limits(noises=3.5, swings=0.0, lost=0.04),
}
"""By verdict and by how many of the latest checkpoints all lie so low. Chosen on the healthy runs of standard Pythia
and of the OLMo ladder's shortest runs; `tests.bench.dynamics` reports runs that had no say in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fall:
    """How far the latest scores of one series are below what it had.

    Attributes:
        series: which.
        domain: of the task.
        checkpoints: how many of the latest all lie at least so low.
        noises: the fall in units of checkpoint noise; below 0 if the scores rose.
        swings: the fall in units of the largest swing that was made good again, at least of one noise.
        lost: share of what it had above its floor; 1 is all.
        best: the best mean of three before, in the metric's unit.
        seen: the mildest of the latest scores, in the metric's unit.
    """

    series: Series
    domain: str
    checkpoints: int
    noises: float
    swings: float
    lost: float
    best: float
    seen: float

    def reaches(self, limits: Limits) -> bool:
        """Whether it is as far as that in each respect."""
        return self.noises >= limits.noises and self.swings >= limits.swings and self.lost >= limits.lost


def falls_of(table: CurveTable, run: str, curves: Sequence[TaskCurve]) -> list[Fall]:
    """The falls of these curves of a run over one and over two checkpoints; of those that had something to lose.

    Args:
        table: has the run.
        run: its name.
        curves: of the run, to the latest checkpoint.
    """
    before = until_the_best(table.select(runs=[run]), run)
    found = []
    risen = {verdict.series: verdict for verdict in judge(before) if verdict.risen}
    for curve in curves:
        verdict = risen.get(curve.series)
        if verdict is None:
            continue
        floor = float(judged_value(replace(curve, value_C=np.array([verdict.floor])))[0])
        late = curve.since_step(curve.first_steps(table.runs[run].total_tokens))
        found += [fall for count in (1, 2) if (fall := fall_of(late, floor, checkpoints=count)) is not None]
    return found


def fall_of(curve: TaskCurve, floor: float, *, checkpoints: int) -> Fall | None:
    """The fall of a curve's latest checkpoints; None if there are too few before them.

    Args:
        curve: without the very first checkpoints.
        floor: what cannot be lost, in the unit of `judged_value`.
        checkpoints: how many of the latest are judged.
    """
    value_C = judged_value(curve)
    past_C, late_C = value_C[:-checkpoints], value_C[-checkpoints:]
    if len(past_C) < FEWEST_BEFORE:
        return None
    mean_W = np.lib.stride_tricks.sliding_window_view(past_C, _MEAN_OF).mean(axis=1)
    best, noise = float(mean_W.max()), _noise(curve, len(past_C))
    fall = best - float(late_C.max())
    return Fall(
        series=curve.series,
        domain=curve.domain,
        checkpoints=checkpoints,
        noises=fall / noise,
        swings=fall / max(_largest_swing(past_C, mean_W, noise), noise),
        lost=fall / max(best - floor, noise),
        best=float(unjudged_value(curve, np.array([best]))[0]),
        seen=float(unjudged_value(curve, np.array([late_C.max()]))[0]),
    )


def task_falls(falls: Sequence[Fall]) -> list[Evidence]:
    """What single tasks have lost: the gravest that each calls for.

    Args:
        falls: of any tasks, over one and over two checkpoints.
    """
    found = {}
    for (verdict, checkpoints), limits in ONE_TASK.items():
        for fall in falls:
            if fall.checkpoints == checkpoints and fall.reaches(limits) and fall.series not in found:
                found[fall.series] = _evidence(verdict, fall)
    return list(found.values())


def joint_fall(falls: Sequence[Fall], *, domain: str = "") -> list[Evidence]:
    """What several tasks have lost together: the gravest that it calls for, if anything.

    Args:
        falls: of the tasks, over one and over two checkpoints.
        domain: of all of them; empty for the whole run.
    """
    for (verdict, checkpoints), limits in TOGETHER.items():
        of_tasks = [fall for fall in falls if fall.checkpoints == checkpoints]
        noises, lost = pooled_noises(of_tasks), pooled_lost(of_tasks)
        if len(of_tasks) > 1 and noises >= limits.noises and lost >= limits.lost:
            name = domain or "all tasks together"
            furthest = max(of_tasks, key=lambda fall: fall.noises)
            sentence = f"{name} lost {lost:.0%} of what {'it' if domain else 'they'} had learnt, {_when(checkpoints)}"
            return [
                Evidence(
                    kind="fall",
                    verdict=verdict,
                    domain=domain,
                    deviation=-noises,
                    sentence=f"{sentence} (most of all {_numbers(furthest)})",
                )
            ]
    return []


def pooled_noises(falls: Sequence[Fall]) -> float:
    """The falls of several tasks together over the spread of their sum; each counts for so much at most."""
    return over_spread([min(fall.noises, _CLIPPED) for fall in falls])


def pooled_lost(falls: Sequence[Fall]) -> float:
    """Mean share that several tasks have lost; what one has gained makes up for nothing that another has lost."""
    return float(np.mean([np.clip(fall.lost, 0.0, 1.0) for fall in falls])) if falls else float("nan")


def _noise(curve: TaskCurve, count: int) -> float:
    early = curve.where(np.arange(len(curve)) < count)
    return float(checkpoint_noise(early.tokens_C, judged_value(early), judged_stderr(early)))


def _largest_swing(past_C: np.ndarray, mean_W: np.ndarray, noise: float) -> float:
    """The furthest that a score was below the best mean of three before it, and came back: what stayed is no swing."""
    best_C = np.maximum.accumulate(mean_W)[: len(past_C) - _MEAN_OF]
    fallen_C = past_C[_MEAN_OF:]
    later_C = np.maximum.accumulate(past_C[::-1])[::-1][_MEAN_OF:]
    return float(np.max(np.where(later_C >= best_C - 2.0 * noise, best_C - fallen_C, 0.0), initial=0.0))


def _evidence(verdict: str, fall: Fall) -> Evidence:
    return Evidence(
        kind="fall",
        verdict=verdict,
        domain=fall.domain,
        deviation=-fall.noises,
        sentence=f"{fall.series.task} lost {min(fall.lost, 1.0):.0%} of what it had learnt, {_when(fall.checkpoints)} "
        f"({_numbers(fall)}; {fall.noises:.0f} times its noise)",
    )


def _when(checkpoints: int) -> str:
    return "at the last checkpoint" if checkpoints == 1 else f"at each of the last {checkpoints} checkpoints"


def _numbers(fall: Fall) -> str:
    return f"{fall.series}: {fall.seen:.4g}, {fall.best:.4g} at its best"
