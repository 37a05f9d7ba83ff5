"""Faults that are no falls: each is noticed in a made run, and a healthy one shows none of them."""

from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.evidence import WATCH
from probes.dynamics.oddities import counting, louder, swapped
from probes.dynamics.published import PYTHIA_TASKS, PYTHIA_TOKENS_PER_STEP, PYTHIA_TOTAL_TOKENS, pythia
from probes.dynamics.state import assess
from probes.dynamics.table import CurveTable
from tests.support.curve_family import LAWS, changed, family, with_values
from tests.support.curve_faults import NOW, OTHERS, RUN, TASKS, at, fault

DENSE = (1_000, 3_000, *range(7_000, 150_000, 4_000), 150_000)


@pytest.fixture(scope="module")
def whole():
    return family(offset=1.0, seed=1)


@pytest.fixture(scope="module")
def dense():
    return family(offset=1.0, seed=2, steps=DENSE).select(runs=[RUN])


def tasks_of(table):
    return [curve for curve in table.of_run(RUN) if curve.task in TASKS]


def kinds(evidence):
    return [(one.kind, one.verdict) for one in evidence]


@pytest.mark.parametrize("references", [OTHERS, []])
def test_a_jump_of_all_tasks_of_a_domain_is_noticed(whole, references):
    raised = fault(whole, lambda value_C, late_C: value_C + 0.1 * late_C, tasks=("alpha", "beta"))
    state = assess(raised, RUN, references=references)
    (evidence,) = (one for one in state.evidence if one.kind == "jump")
    assert (evidence.verdict, evidence.domain) == (WATCH, "knowledge") and evidence.deviation > 7
    assert "in all of its 2 tasks" in evidence.sentence and "the tasks' answers" in evidence.sentence
    assert {domain.domain: domain.verdict for domain in state.domains}["knowledge"] == WATCH


def test_a_jump_of_one_task_of_a_domain_is_its_own_affair(whole):
    raised = fault(whole, lambda value_C, late_C: value_C + 0.1 * late_C, tasks=("alpha",))
    assert not any(one.kind == "jump" for one in assess(raised, RUN, references=OTHERS).evidence)


def test_noise_that_is_three_times_larger_is_noticed(dense):
    def louder_from(table, last):
        def change(curve):
            law = TASKS.get(curve.task)
            if law is None:
                return curve
            truth_C = law.judged(1.5e9, curve.tokens_C)
            noise_C = curve.value_C - truth_C - (curve.value_C - truth_C).mean()
            return with_values(curve, curve.value_C + 2.0 * noise_C * (np.arange(len(curve)) >= len(curve) - last))

        return changed(table, change)

    (evidence,) = louder(tasks_of(louder_from(dense, 7)))
    assert (evidence.kind, evidence.verdict) == ("noise", WATCH)
    assert "the scores of 4 tasks swing " in evidence.sentence
    for step in DENSE[16::3]:
        assert louder(tasks_of(at(dense, step))) == [], step


def test_the_steep_rise_between_far_apart_first_checkpoints_is_no_noise():
    octaves = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 3_000, *range(13_000, 150_000, 10_000))
    early = family(offset=1.0, seed=3, steps=octaves).select(runs=[RUN])

    def guessed_before(curve):
        chance = TASKS[curve.task].chance if curve.task in TASKS else curve.value_C
        return with_values(curve, np.where(curve.tokens_C < 1_000 * 2e6, chance, curve.value_C))

    table = changed(early, guessed_before)
    for step in octaves[10:]:
        assert louder(tasks_of(at(table, step)), total_tokens=150_000 * 2e6) == [], step


def test_a_fall_or_a_jump_is_not_taken_for_noise(dense):
    for last in (1, 2, 3, 5):
        for shift in (-0.2, 0.2):
            moved = fault(dense, lambda v, late_C, shift=shift: v + shift * late_C, last=last, step=DENSE[-3])
            assert louder(tasks_of(moved)) == [], (last, shift)


@pytest.mark.parametrize("step", [23_000, 33_000, 43_000])
def test_the_first_rise_of_a_run_is_no_noise_beside_checkpoints_at_which_nothing_had_been_learnt(step):
    table = pythia(deduped=False, num_fewshot=0)
    curves = [
        curve.until(step * PYTHIA_TOKENS_PER_STEP)
        for task in PYTHIA_TASKS
        if (curve := table.get("pythia-1.4b", replace(task, num_fewshot=0))) is not None
    ]
    assert louder(curves, total_tokens=PYTHIA_TOTAL_TOKENS) == []


def exchanged(table, first, second, *, last):
    """From a checkpoint on, two tasks have each other's scores."""
    values = {curve.task: curve.value_C for curve in tasks_of(table)}
    other = {first: second, second: first}

    def change(curve):
        if curve.task not in other or curve.run != RUN:
            return curve
        late_C = np.arange(len(curve)) >= len(curve) - last
        return with_values(curve, np.where(late_C, values[other[curve.task]], curve.value_C))

    return changed(table, change)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_two_tasks_with_each_others_scores_are_noticed(whole, last):
    (evidence,) = swapped(tasks_of(exchanged(at(whole, NOW), "alpha", "delta", last=last)))
    assert (evidence.kind, evidence.verdict) == ("swap", WATCH)
    assert "alpha has had the scores of delta and delta those of alpha" in evidence.sentence
    assert f"for {last} checkpoint" in evidence.sentence


def test_tasks_that_keep_their_names_are_not_swapped(whole):
    for step in (53_000, NOW, 150_000):
        assert swapped(tasks_of(at(whole, step))) == []
    fallen = fault(whole, lambda value_C, late_C: np.where(late_C, 0.25, value_C), tasks=("alpha",))
    assert swapped(tasks_of(fallen)) == [], "one has fallen to where another is, which stays there"


def counted(table, factor, *, after):
    """Each token after a step is counted as so many."""
    begin = after * 2e6
    return changed(
        table, lambda c: replace(c, tokens_C=c.tokens_C + (factor - 1.0) * np.maximum(c.tokens_C - begin, 0.0))
    )


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_tokens_that_are_counted_otherwise_after_a_resume_are_noticed(whole, factor):
    alone = at(whole, NOW).select(runs=[RUN])
    (evidence,) = counting(counted(alone, factor, after=83_000), RUN)
    assert (evidence.kind, evidence.verdict) == ("tokens", WATCH)
    assert f"a step has had {'1.00M' if factor < 1 else '4.00M'} tokens since step 83,000" in evidence.sentence
    assert "the tokens are counted wrongly" in evidence.sentence
    assert any(one.kind == "tokens" for one in assess(counted(alone, factor, after=83_000), RUN).evidence)


def test_a_steady_count_and_a_ramp_of_the_batch_size_are_legitimate(whole):
    alone = at(whole, NOW).select(runs=[RUN])
    assert counting(alone, RUN) == []
    planned = replace(alone.runs[RUN], ramps_batch_size=True)
    assert counting(CurveTable([planned], counted(alone, 2.0, after=83_000).curves), RUN) == []
    ramp = counted(counted(alone, 2.0, after=33_000), 1.5, after=63_000)
    assert counting(ramp, RUN) == [], "tokens a step have changed before"
    small = counted(alone, 1.2, after=83_000)
    assert counting(small, RUN) == []
    unknown = changed(counted(alone, 2.0, after=83_000), lambda c: replace(c, step_C=np.full(len(c), -1)))
    assert counting(unknown, RUN) == []


def test_a_healthy_family_shows_nothing_odd(whole):
    for step in (53_000, NOW, 123_000, 150_000):
        state = assess(at(whole, step), RUN, references=OTHERS)
        assert not {one.kind for one in state.evidence} & {"jump", "noise", "swap", "tokens"}
    assert len(tasks_of(whole)) == len(LAWS) - 1
