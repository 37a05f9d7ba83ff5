"""Falls of what a task had learnt, by its own curve alone: the same whatever the run is held against."""

from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.evidence import ACT, HEALTHY, VERDICTS, WATCH
from probes.dynamics.expectation import expect
from probes.dynamics.falls import Limits, fall_of, joint_fall, task_falls
from probes.dynamics.state import assess
from probes.dynamics.table import CurveTable, RunFacts, Series, curve_of
from probes.dynamics.watched import watched
from tests.support.curve_family import LOSS, changed, family, with_values
from tests.support.curve_faults import NOW, OTHERS, RUN, RUNS, TASKS, at, drop, fault

CHANCES = {"alpha": 0.25, "beta": 0.25, "gamma": 0.5, "delta": 0.0}
MODES = {"around": OTHERS, "smaller": RUNS[:2], "own past": []}


@pytest.fixture(scope="module")
def whole():
    return family(offset=1.0, seed=1)


@pytest.fixture(scope="module")
def expectations(whole):
    return {
        mode: expect(whole, RUN, watched(whole, RUN, references), references=references)
        for mode, references in MODES.items()
        if references
    }


def state_of(table, mode, expectations):
    return assess(table, RUN, references=MODES[mode], expectation=expectations.get(mode))


def fallen(whole, share, *, tasks=tuple(TASKS), last=1, step=NOW):
    """Each of these tasks loses a share of what it has above its own chance."""
    found = at(whole, step)
    for task in tasks:
        found = fault(found, drop(share, of=CHANCES[task]), tasks=(task,), last=last, step=step)
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_task_that_falls_to_half_or_to_chance_is_act_within_two_checkpoints(whole, expectations, mode, share):
    for task in TASKS:
        states = [state_of(fallen(whole, share, tasks=(task,), last=last), mode, expectations) for last in (1, 2)]
        assert ACT in {state.verdict for state in states}, (mode, share, task)
        assert any(one.kind == "fall" and one.sentence.startswith(f"{task} lost ") for one in states[1].evidence)


@pytest.mark.parametrize("mode", MODES)
def test_a_collapse_of_all_tasks_is_never_milder_than_half_of_it(whole, expectations, mode):
    half, full = (state_of(fallen(whole, share), mode, expectations) for share in (0.5, 1.0))
    assert half.verdict == full.verdict == ACT
    assert {domain.verdict for domain in full.domains} == {ACT}
    assert full.evidence[0].sentence.startswith("all tasks together lost ")


@pytest.mark.parametrize("mode", MODES)
def test_no_verdict_gets_milder_because_time_passes_on_the_level_that_was_fallen_to(whole, expectations, mode):
    for share in (0.5, 1.0):
        ranks = [
            VERDICTS.index(state_of(fallen(whole, share, last=last, step=133_000), mode, expectations).verdict)
            for last in (1, 2, 4, 6, 8)
        ]
        assert ranks == sorted(ranks) and ranks[-1] == VERDICTS.index(ACT)


def test_a_fall_that_was_made_good_is_over(whole, expectations):
    def dips(value_C, late_C):
        return value_C - 0.5 * (value_C - 0.25) * (late_C & (np.cumsum(late_C) == 1))

    recovered = fault(whole, dips, last=4)
    assert not any(one.kind == "fall" for one in state_of(recovered, "own past", expectations).evidence)


def straight(values, *, chance=0.25, noise=0.004, **more):
    """A curve with these scores after a fixed course of noise."""
    swings = noise * np.resize([1.0, -1.0, 0.5, -1.5, 1.0], len(values))
    rows = [(1000 * (i + 1), 2e9 * (i + 1), v + s, 0.01) for i, (v, s) in enumerate(zip(values, swings, strict=True))]
    return curve_of(rows, run="one", series=Series("task", "acc", 0), domain="knowledge", chance=chance, **more)


RISING = [0.3, 0.4, 0.45, 0.48, 0.5, 0.51, 0.52, 0.53, 0.54, 0.55]


def table_of(curve):
    return CurveTable([RunFacts(name="one", total_tokens=60e9)], [curve])


def test_the_numbers_of_a_fall_are_plain_arithmetic():
    curve = straight([*RISING, 0.40], noise=0.0)
    fall = fall_of(curve, 0.25, checkpoints=1)
    assert fall.best == pytest.approx(np.mean(RISING[-3:])) and fall.seen == 0.40
    assert fall.lost == pytest.approx((fall.best - 0.40) / (fall.best - 0.25))
    # The floor of the noise: 0.35 standard errors.
    assert fall.noises == pytest.approx((fall.best - 0.40) / 0.0035)
    assert fall_of(curve.where(np.arange(len(curve)) < 5), 0.25, checkpoints=1) is None


def test_one_dip_of_one_noisy_task_is_watched_and_the_next_checkpoint_decides():
    dip = assess(table_of(straight([*RISING, 0.50])), "one")
    assert dip.verdict == WATCH
    assert assess(table_of(straight([*RISING, 0.50, 0.56])), "one").verdict == HEALTHY
    stays = assess(table_of(straight([*RISING, 0.43, 0.43])), "one")
    assert stays.verdict == ACT
    assert any("at each of the last 2 checkpoints" in one.sentence for one in stays.evidence if one.verdict == ACT)


def test_what_a_task_has_done_before_and_made_good_is_its_noise():
    swings = [*RISING[:6], 0.44, 0.52, 0.53, 0.54]
    quiet, noisy = (assess(table_of(straight([*course, 0.46])), "one") for course in (RISING, swings))
    assert quiet.verdict == WATCH and not any(one.kind == "fall" for one in noisy.evidence)
    assert fall_of(straight([*swings, 0.46]), 0.25, checkpoints=1).swings < 1.2


def test_a_swing_that_was_never_made_good_is_no_noise():
    stays = straight([*RISING, *([0.3] * 8)], noise=0.004)
    assert fall_of(stays, 0.25, checkpoints=2).swings > 10


def test_what_an_untrained_model_has_already_is_not_lost(whole):
    flat = straight([0.7] * 12, chance=0.5)
    swinging = with_values(flat, np.append(flat.value_C[:-2], [0.55, 0.55]))
    assert not any(one.kind == "fall" for one in assess(table_of(swinging), "one").evidence)


def test_one_task_cannot_speak_for_all_however_far_it_falls():
    healthy = [fall_of(replace(straight(RISING), task=name), 0.25, checkpoints=1) for name in "abcde"]
    far = fall_of(straight([*RISING, 0.25]), 0.25, checkpoints=1)
    assert task_falls([far])[0].verdict == ACT and joint_fall([far, *healthy]) == []
    assert joint_fall([replace(far, series=Series(name, "acc")) for name in "ab"], domain="d")[0].verdict == ACT


def test_all_limits_have_to_be_reached():
    fall = fall_of(straight([*RISING, 0.40]), 0.25, checkpoints=1)
    assert fall.reaches(Limits(noises=5.0, swings=1.0, lost=0.4))
    assert not fall.reaches(Limits(noises=5.0, swings=1.0, lost=0.6))
    assert not fall.reaches(Limits(noises=500.0, swings=1.0, lost=0.4))
    assert not fall.reaches(Limits(noises=5.0, swings=500.0, lost=0.4))


def test_a_healthy_family_has_no_falls(whole, expectations):
    for step in (43_000, 63_000, 83_000, 103_000, 123_000, 150_000):
        state = state_of(at(whole, step), "own past", expectations)
        assert not any(one.kind == "fall" for one in state.evidence), step


def test_a_loss_that_rises_by_half_of_what_it_had_fallen_is_a_fall(whole, expectations):
    series = LOSS.series

    def rises(curve):
        if curve.series != series or curve.run != RUN:
            return curve
        half = 0.5 * (curve.value_C[2] - curve.value_C[-1])
        return with_values(curve, curve.value_C + half * (np.arange(len(curve)) == len(curve) - 1))

    state = state_of(changed(at(whole, NOW), rises), "own past", expectations)
    assert state.verdict == ACT and any(one.domain == "loss" and one.kind == "fall" for one in state.evidence)
