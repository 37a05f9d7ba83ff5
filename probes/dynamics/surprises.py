"""Scores below what was expected of them, from references or from the run's own past, of several tasks at once.

One checkpoint of one task is never more than `watch` here: another task must agree, or the next checkpoint. How much of
what a task had is gone, whatever was expected, is for `probes.dynamics.falls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probes.dynamics.evidence import ACT, HEALTHY, VERDICTS, WATCH, Evidence
from probes.dynamics.expectation import WINDOWS, Expectation, Surprise, over_spread, pooled
from probes.dynamics.noise import judged_value
from probes.dynamics.table import LOSS_DOMAIN, Series, TaskCurve

WATCH_FROM, ACT_FROM = 3.0, 4.2
WATCH_FROM_ALONE, ACT_FROM_ALONE = 3.5, 5.0
"""Standard deviations below expectation, of all tasks of a domain or of the run together: from references, and from the
run's own past alone, whose deviations have wider tails."""

_ONE_WATCH_FROM = 3.6
_ONE_ACT_FROM, _CONFIRMED_FROM, _NOT_OVER_FROM = 3.8, 2.0, 1.0
"""Of a single task or loss: its mean over the window, and that of the second furthest of its checkpoints."""
_UNSEEN_FACTOR = 2.0
"""Where the run's own curves show no fall of these tasks, a deviation must be so many times as far for `act`."""
_CLIPPED = 4.0
"""Of one task among several: one alone cannot make all of them fall."""

LEVEL_FROM = 3.0
_FALLS_BEHIND_FROM = 2.5
"""Where the loss goes as expected: two records that disagree need less."""

Windows = list[list[Surprise]]
"""Of one or several curves together: the surprises of all of them, in each window in which each has one."""


class Changes:
    """The surprises of a run's latest checkpoints, each conditioned on the run's own past before them.

    Args:
        expectation: what is expected.
        curves: of the run, to the latest checkpoint.
        total_tokens: of the run as planned.
    """

    def __init__(self, expectation: Expectation, curves: Sequence[TaskCurve], *, total_tokens: float | None) -> None:
        self._found: list[Mapping[Series, Surprise | None]] = [
            {curve.series: expectation.change(curve, window, total_tokens=total_tokens) for curve in curves}
            for window in WINDOWS
        ]

    def of(self, curves: Sequence[TaskCurve]) -> Windows:
        """The surprises of these curves, window by window; windows in which one of them has none are left out."""
        windows = []
        for by_series in self._found:
            known = [surprise for curve in curves if (surprise := by_series.get(curve.series)) is not None]
            if known and len(known) == len(curves):
                windows.append(known)
        return windows

    def judged(self) -> set[Series]:
        """The series of which anything is expected."""
        return {one for by_series in self._found for one, surprise in by_series.items() if surprise is not None}


def lowest(windows: Windows) -> list[Surprise]:
    """The surprises of the window in which the curves together are furthest below expectation."""
    return min(windows, key=pooled) if windows else []


def fell_behind(windows: Windows, *, limit: str, alone: bool, fell: bool, domain: str = "") -> list[Evidence]:
    """The gravest that the windows of some tasks together call for.

    An expectation can be wrong while the run is well: `act` needs a fall of the run's own curves beside it, or a
    deviation that is twice as far.

    Args:
        windows: of tasks or losses.
        limit: the gravest verdict allowed.
        alone: whether the run is held against its own past alone.
        fell: whether the same curves are below what they had (`probes.dynamics.falls`).
        domain: of the tasks, `LOSS_DOMAIN` of losses; empty for all tasks together.
    """
    found = [
        (VERDICTS.index(verdict), -pooled(surprises), surprises)
        for surprises in windows
        if (verdict := _verdict(surprises, alone=alone, fell=fell)) != HEALTHY
    ]
    if not found:
        return []
    rank, below, surprises = max(found, key=lambda one: one[:2])
    name = "the loss" if domain == LOSS_DOMAIN else domain or "all tasks together"
    return [
        Evidence(
            kind="loss" if domain == LOSS_DOMAIN else "change",
            verdict=min(VERDICTS[rank], limit, key=VERDICTS.index),
            domain=domain,
            deviation=-below,
            sentence=f"{name} {_behind(surprises, -below)}",
        )
    ]


def low_level(domain: str, levels: Sequence[Surprise]) -> list[Evidence]:
    """The latest scores of a domain against runs of this size and token count, whatever the run's past."""
    level = pooled(levels)
    if not level <= -LEVEL_FROM:
        return []
    furthest = min(levels, key=lambda one: one.deviation)
    sentence = f"{domain} is {-level:.1f} deviations below runs of this size and token count ({_seen(furthest)})"
    return [Evidence(kind="level", verdict=WATCH, domain=domain, deviation=level, sentence=sentence)]


def divergence(change: float, losses: Sequence[TaskCurve], loss_change: float) -> list[Evidence]:
    """Tasks that fall behind while the loss improves as expected.

    Args:
        change: deviation of all tasks together.
        losses: the run's losses.
        loss_change: their deviation; nan if nothing was expected of them.
    """
    improving = bool(losses) and all(
        len(curve) > 1 and judged_value(curve)[-1] >= judged_value(curve)[-2] for curve in losses
    )
    if not (change <= -_FALLS_BEHIND_FROM and improving and loss_change > -1.0):
        return []
    sentence = (
        f"the loss improves as expected ({loss_change:+.1f}), the tasks do not ({change:+.1f}): "
        "look at what the data now holds, and at the prompts"
    )
    return [Evidence(kind="divergence", verdict=WATCH, deviation=change, sentence=sentence)]


def _verdict(surprises: Sequence[Surprise], *, alone: bool, fell: bool) -> str:
    factor = 1.0 if fell else _UNSEEN_FACTOR
    if len(surprises) == 1:
        only = surprises[0]
        if only.deviation <= -factor * _ONE_ACT_FROM and only.confirmed <= -_CONFIRMED_FROM:
            return ACT
        # A dip that is over already weighs on the mean of the window, but only its own checkpoint lies low.
        low = only.window == 1 or only.confirmed <= -_NOT_OVER_FROM
        return WATCH if low and only.deviation <= -_ONE_WATCH_FROM else HEALTHY
    together = over_spread([max(one.deviation, -factor * _CLIPPED) for one in surprises])
    if together <= -factor * (ACT_FROM_ALONE if alone else ACT_FROM):
        return ACT
    together = over_spread([max(one.deviation, -_CLIPPED) for one in surprises])
    return WATCH if together <= -(WATCH_FROM_ALONE if alone else WATCH_FROM) else HEALTHY


def _behind(surprises: Sequence[Surprise], deviation: float) -> str:
    furthest = min(surprises, key=lambda one: one.deviation)
    over = "the last checkpoint" if furthest.window == 1 else f"the last {furthest.window} checkpoints"
    return f"fell {-deviation:.1f} deviations below expectation over {over} (most of all {_seen(furthest)})"


def _seen(surprise: Surprise) -> str:
    return f"{surprise.series}: {surprise.seen:.4g}, expected {surprise.expected:.4g}"
