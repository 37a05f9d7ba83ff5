"""What of a run is judged at all, and the verdict `unknown` with its reasons."""

from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.evidence import HEALTHY, UNKNOWN
from probes.dynamics.expectation import expect
from probes.dynamics.state import assess
from probes.dynamics.table import CurveTable, RunFacts, Series
from probes.dynamics.watched import is_loss, watched
from tests.support.curve_family import (
    LAWS,
    LOSS,
    changed,
    family,
    with_values,
)
from tests.support.curve_faults import NOW, OTHERS, RUN, TASKS, at, drop, fault


@pytest.fixture(scope="module")
def whole():
    return family(offset=1.0, seed=1)


@pytest.fixture(scope="module")
def expectation(whole):
    return expect(whole, RUN, watched(whole, RUN, OTHERS), references=OTHERS)


def test_too_few_checkpoints_are_unknown_with_their_number(whole):
    alone = whole.select(runs=[RUN])
    assert assess(at(alone, 43_000), RUN).verdict == HEALTHY, "the sixth checkpoint after the very first"
    state = assess(at(alone, 33_000), RUN)
    assert (state.verdict, state.evidence) == (UNKNOWN, ()) and np.isnan(state.change)
    few = "5 checkpoints after the very first ones, where 6 are needed to hold a run against its own past"
    assert state.summary == f"unknown: nothing is judged. alpha, beta, gamma and 2 more: {few}"
    assert {domain.domain: (domain.verdict, domain.unknown) for domain in state.domains} == {
        "knowledge": (UNKNOWN, f"alpha, beta: {few}"),
        "commonsense": (UNKNOWN, f"gamma, delta: {few}"),
    }


def test_a_run_without_scores_is_unknown():
    empty = assess(CurveTable([RunFacts(name="new")], []), "new")
    assert (empty.verdict, empty.step, empty.tokens) == (UNKNOWN, -1, 0.0)
    assert empty.summary == "unknown: nothing is judged. nothing has been measured yet"


def flat(table, *, tasks=tuple(TASKS)):
    """These tasks never leave chance; losses are left out."""
    noise = np.random.default_rng(0)

    def as_guessed(curve):
        if curve.task not in TASKS:
            return None
        return (
            with_values(curve, curve.chance + 0.004 * noise.normal(size=len(curve))) if curve.task in tasks else curve
        )

    return changed(table, as_guessed)


def test_tasks_that_are_all_still_guessed_leave_nothing_to_judge(whole):
    state = assess(flat(at(whole.select(runs=[RUN]), NOW)), RUN)
    assert (state.verdict, state.evidence) == (UNKNOWN, ())
    assert "alpha, beta, gamma and 1 more: at chance" in state.summary and "(12 checkpoints measured)" in state.summary
    assert "too few" not in state.summary and "needed" not in state.summary


def test_a_domain_that_is_still_guessed_is_unknown_beside_one_that_is_judged(whole):
    state = assess(flat(at(whole.select(runs=[RUN]), NOW), tasks=("alpha", "beta")), RUN)
    assert {domain.domain: domain.verdict for domain in state.domains} == {"commonsense": HEALTHY, "knowledge": UNKNOWN}
    assert state.verdict == HEALTHY and state.unknown == ""
    assert next(domain.unknown for domain in state.domains if domain.unknown).startswith("alpha, beta: at chance")


def test_what_no_reference_has_measured_is_held_against_the_own_past(whole):
    other = changed(whole, lambda c: replace(c, task=f"new_{c.task}") if c.run == RUN else c)
    state = assess(at(other, NOW), RUN, references=OTHERS)
    assert state.summary == (
        "healthy: as expected from its own past, since no reference of known size has measured the same"
    )
    assert assess(at(other, 33_000), RUN, references=OTHERS).verdict == UNKNOWN


def test_one_task_that_no_reference_has_measured_is_judged_beside_the_others(whole, expectation):
    def renamed(curve):
        return replace(curve, task="new") if curve.run == RUN and curve.task == "alpha" else curve

    state = assess(changed(fault(whole, drop(1.0)), renamed), RUN, references=OTHERS, expectation=expectation)
    assert any(one.kind == "fall" and one.sentence.startswith("new lost ") for one in state.evidence)


def test_metrics_that_are_never_judged_are_named(whole):
    odd = changed(whole.select(runs=[RUN]), lambda c: replace(c, metric="margin"))
    assert assess(odd, RUN).summary.endswith("by a metric that is judged (measured: margin)")


def test_a_task_that_fell_to_chance_is_still_watched(whole):
    alone = whole.select(runs=[RUN])
    for last in (1, 2, 3, 6):
        fallen = fault(alone, drop(1.0, of=0.25), tasks=("alpha",), last=last)
        assert TASKS["alpha"].series in watched(fallen, RUN, []), last


def test_bits_per_byte_stand_for_a_task_that_has_them_and_guessed_tasks_for_nothing(whole):
    random = np.random.default_rng(0)
    alpha = [c for c in whole if c.task == "alpha"]
    bits = [replace(c, metric="gold_bpb", chance=np.nan, value_C=1.5 - c.value_C) for c in alpha]
    norm = [replace(c, metric="acc_norm") for c in alpha]
    guessed = changed(
        CurveTable(whole.runs.values(), [*whole.curves, *bits, *norm]),
        lambda c: with_values(c, c.chance + 0.006 * random.normal(size=len(c))) if c.task == "beta" else c,
    )
    found = watched(guessed, RUN, OTHERS)
    assert found == [Series("alpha", "gold_bpb", 0), TASKS["gamma"].series, TASKS["delta"].series, LOSS.series]
    # Where no reference has bits per byte, what they have.
    without = changed(guessed, lambda c: None if c.metric == "gold_bpb" and c.run != RUN else c)
    assert watched(without, RUN, OTHERS)[0] == Series("alpha", "acc_norm", 0)
    assert watched(without, RUN, [])[0] == Series("alpha", "gold_bpb", 0)


def test_means_of_domains_and_measures_of_bias_are_not_watched(whole):
    more = [replace(c, task="mean") for c in whole if c.task == "alpha"]
    more += [replace(c, task="crows_pairs", domain="bias") for c in whole if c.task == "alpha"]
    found = watched(CurveTable(whole.runs.values(), [*whole.curves, *more]), RUN, OTHERS)
    assert {one.task for one in found} == {law.task for law in LAWS}


def test_a_loss_is_what_falls_in_the_loss_domain(whole):
    assert [is_loss(whole.get(RUN, law.series)) for law in LAWS] == [False] * 4 + [True]
    loss = whole.get(RUN, LOSS.series)
    assert not is_loss(replace(loss, task="train", metric="learning_rate"))
