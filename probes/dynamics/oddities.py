"""What is wrong and no fall: a jump, louder noise, two tasks with each other's scores, another count of tokens.

Each rule looks at the run's own curves (the jump at what was expected of them, too) and asks for a look, not for more:
a person has to say whether the model, the evaluation or the count has changed.

No rule looks for tokens that are counted wrongly from the first step on, or together with the steps: the run's own
record then agrees with itself. Beside references such a run is above or below them for its tokens (`level`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pretrain.track.legible import legible_count
from probes.dynamics.evidence import WATCH, Evidence
from probes.dynamics.expectation import Surprise, pooled
from probes.dynamics.noise import HALF_NORMAL_MEDIAN, judged_value, noise_of, noise_pieces, unjudged_value
from probes.dynamics.table import CurveTable, TaskCurve

LATEST = 3
"""Checkpoints for which a jump, a swap and another count of tokens are said: after that they are the run's past."""

_JUMP_FROM, _JUMP_OF_EACH, _JUMP_OF_ONE = 7.0, 3.0, 9.0
"""Deviations above expectation: of all tasks of a domain together, of each of them, and of the only one of a domain."""

_LOUDER_BY, _LOUDER_PIECES, _LOUDER_BEFORE, _LOUDER_TASKS = 2.0, 5, 8, 3
"""Recent noise over earlier noise; recent and earlier second differences of a curve; tasks that must have them."""

_SWAPPED_WITHIN, _SWAPPED_APART = 0.35, 10.0
"""How near each score is to where the other task's was, as a share of what those two are apart, and how far that must
be, in units of checkpoint noise."""

_RATE_BY, _STEADY = 1.4, 1.1
"""Factor of tokens a step from one checkpoint to the next that asks for a look, and within which they are the same."""


def jump(domain: str, windows: Sequence[Sequence[Surprise]]) -> list[Evidence]:
    """All tasks of a domain are far above expectation at once: the data held the answers, or the scoring has changed.

    Args:
        domain: its name.
        windows: the surprises of all its tasks, over the latest one, two, … checkpoints.
    """
    surprises = max(windows, key=pooled, default=[])
    deviation = pooled(surprises)
    if not deviation >= (_JUMP_FROM if len(surprises) > 1 else _JUMP_OF_ONE):
        return []
    if min(one.deviation for one in surprises) < _JUMP_OF_EACH:
        return []
    most = max(surprises, key=lambda one: one.deviation)
    tasks = f"all of its {len(surprises)} tasks" if len(surprises) > 1 else "its only task"
    sentence = (
        f"{domain} rose {deviation:.1f} deviations above expectation in {tasks} (most of all {most.series}: "
        f"{most.seen:.4g}, expected {most.expected:.4g}): look whether the data now holds the tasks' answers, and "
        "whether the scoring has changed"
    )
    return [Evidence(kind="jump", verdict=WATCH, domain=domain, deviation=deviation, sentence=sentence)]


def louder(curves: Sequence[TaskCurve], *, total_tokens: float | None = None) -> list[Evidence]:
    """Scores swing much more from checkpoint to checkpoint than they did, over all tasks together.

    Args:
        curves: of the run; the very first checkpoints, at which scores hardly move, do not count.
        total_tokens: of the whole run as planned.
    """
    ratios = []
    for whole in curves:
        curve = whole.since_step(whole.first_steps(total_tokens))
        piece_T = noise_pieces(curve.tokens_C, judged_value(curve))
        if len(piece_T) < _LOUDER_BEFORE + _LOUDER_PIECES:
            continue
        before = curve.where(np.arange(len(curve)) < len(curve) - _LOUDER_PIECES)
        ratios.append(np.abs(piece_T[-_LOUDER_PIECES:]) / noise_of(before))
    if len(ratios) < _LOUDER_TASKS:
        return []
    # Medians: a jump or a fall makes two large differences of five, in all tasks, and is called by other rules.
    ratio = float(np.median(np.median(ratios, axis=0))) / HALF_NORMAL_MEDIAN
    if ratio < _LOUDER_BY:
        return []
    sentence = (
        f"the scores of {len(ratios)} tasks swing {ratio:.1f} times as much from checkpoint to checkpoint as they did "
        f"before the last {_LOUDER_PIECES + 1}: look at the learning rate, at the averaging of weights, and at the "
        "number of items that are scored"
    )
    return [Evidence(kind="noise", verdict=WATCH, sentence=sentence)]


def swapped(curves: Sequence[TaskCurve]) -> list[Evidence]:
    """Two tasks lie where the other one was, since the same checkpoint: their scores were exchanged."""
    for count in range(1, LATEST + 1):
        known = [(curve, _before(curve, count), _since(curve, count)) for curve in curves if len(curve) >= count + 4]
        noises = {
            curve.series: noise_of(curve.where(np.arange(len(curve)) < len(curve) - count)) for curve, *_ in known
        }
        for (one, one_before, one_now), (other, other_before, other_now) in combinations(known, 2):
            noise = max(noises[one.series], noises[other.series])
            apart = abs(one_before - other_before)
            if one.lower_is_better != other.lower_is_better or apart < _SWAPPED_APART * noise:
                continue
            if max(abs(one_now - other_before), abs(other_now - one_before)) < _SWAPPED_WITHIN * apart:
                sentence = (
                    f"{one.task} has had the scores of {other.task} and {other.task} those of {one.task} for "
                    f"{count} checkpoint{'' if count == 1 else 's'} ({one.series}: {_shown(one, one_now)} after "
                    f"{_shown(one, one_before)}; {other.series}: {_shown(other, other_now)} after "
                    f"{_shown(other, other_before)}): look whether the names of the two were exchanged"
                )
                return [Evidence(kind="swap", verdict=WATCH, sentence=sentence)]
    return []


def counting(table: CurveTable, run: str) -> list[Evidence]:
    """Tokens a step have changed by a factor at once: the batch size has changed, or tokens are counted wrongly.

    A planned ramp of the batch size is legitimate: where the plan is known, or tokens a step have changed more than
    once before, nothing is said.
    """
    if table.runs[run].ramps_batch_size:
        return []
    pairs = {
        (int(step), float(tokens))
        for curve in table.of_run(run)
        for step, tokens in zip(curve.step_C, curve.tokens_C, strict=True)
        if step >= 0
    }
    if len(pairs) < 4:
        return []
    step_C, tokens_C = (np.array(column) for column in zip(*sorted(pairs, key=lambda pair: pair[1]), strict=True))
    if (np.diff(step_C) <= 0).any():
        return []
    rate_C = np.diff(tokens_C) / np.diff(step_C)
    factor_C = rate_C[1:] / rate_C[:-1]
    changes = np.flatnonzero(np.maximum(factor_C, 1 / factor_C) > _STEADY)
    if len(changes) != 1 or changes[0] < len(factor_C) - LATEST:
        return []
    at = int(changes[0])
    if max(factor_C[at], 1 / factor_C[at]) < _RATE_BY:
        return []
    sentence = (
        f"a step has had {legible_count(int(rate_C[at + 1]))} tokens since step {int(step_C[at + 1]):,}, "
        f"{factor_C[at]:.2g} times as many as the {legible_count(int(rate_C[at]))} before: if the batch size was not "
        "changed, the tokens are counted wrongly, and so is everything that is held against tokens"
    )
    return [Evidence(kind="tokens", verdict=WATCH, sentence=sentence)]


def _before(curve: TaskCurve, count: int) -> float:
    return float(judged_value(curve)[-count - 2 : -count].mean())


def _since(curve: TaskCurve, count: int) -> float:
    return float(judged_value(curve)[-count:].mean())


def _shown(curve: TaskCurve, judged: float) -> str:
    return f"{unjudged_value(curve, np.array([judged]))[0]:.4g}"
