from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.evidence import ACT, HEALTHY, VERDICTS, WATCH
from probes.dynamics.expectation import expect
from probes.dynamics.published import pythia
from probes.dynamics.references import read_references
from probes.dynamics.state import assess, state_rows
from probes.dynamics.surprises import WATCH_FROM
from probes.dynamics.table import LOSS_DOMAIN, CurveTable
from probes.dynamics.watched import watched
from tests.support.curve_family import (
    LAWS,
    LOSS,
    STEPS,
    TOTAL_TOKENS,
    changed,
    family,
    with_values,
    write_csv,
)
from tests.support.curve_faults import NOW, OTHERS, RUN, RUNS, TASKS, at, drop, fault

EARLY = 13_000


@pytest.fixture(scope="module")
def whole():
    return family(offset=1.0, seed=1)


@pytest.fixture(scope="module")
def expectation(whole):
    return expect(whole, RUN, watched(whole, RUN, OTHERS), references=OTHERS)


def stands_still(value_C, late_C):
    """Scores stay at the last one before, with what noise they had about their own course of neighbours."""
    start = value_C[~late_C][-1]
    noise_C = np.random.default_rng(0).normal(0, 0.004, len(value_C))
    return np.where(late_C, start + noise_C, value_C)


def state_of(table, expectation, **more):
    return assess(table, RUN, references=OTHERS, expectation=expectation, **more)


def kinds(state):
    return Counter(evidence.kind for evidence in state.evidence)


def test_a_healthy_run_is_healthy_and_says_against_what(whole, expectation):
    state = state_of(at(whole, NOW), expectation)
    assert (state.run, state.step, state.tokens, state.verdict) == (RUN, NOW, NOW * 2e6, HEALTHY)
    assert state.evidence == () and abs(state.change) < WATCH_FROM
    assert state.summary == "healthy: as expected from 4 run(s) of 400M to 6.00B parameters"
    assert {domain.domain: domain.verdict for domain in state.domains} == {"knowledge": HEALTHY, "commonsense": HEALTHY}
    assert [len(domain.tasks) for domain in state.domains] == [2, 2]


def test_healthy_simulated_runs_are_never_called_act_and_seldom_watch():
    verdicts = Counter()
    for seed in range(2):
        table = family(seed=seed, offset=1.0)
        expectation = expect(table, RUN, watched(table, RUN, OTHERS), references=OTHERS)
        for step in STEPS[3::2]:
            verdicts[state_of(at(table, step), expectation).verdict] += 1
    assert verdicts[ACT] == 0
    # The lowest of three windows, two domains, the loss and all together below −2.5: a tenth, were they independent.
    assert verdicts[WATCH] <= 0.1 * verdicts.total() == pytest.approx(1.6)


def test_a_drop_of_all_tasks_is_called_with_its_numbers(whole, expectation):
    state = state_of(fault(whole, drop(0.15)), expectation)
    assert state.verdict == ACT and kinds(state)["change"] == 3, "two domains and all together"
    together = next(one for one in state.evidence if one.domain == "" and one.kind == "change")
    assert together.sentence.startswith(f"all tasks together fell {-together.deviation:.1f} deviations below expect")
    assert "over the last checkpoint (most of all " in together.sentence
    assert together.deviation == state.change < -5
    for domain in state.domains:
        assert domain.verdict == ACT
        (evidence,) = (one for one in state.evidence if one.domain == domain.domain and one.kind == "change")
        assert evidence.deviation == domain.change
        seen = {f"{fault(whole, drop(0.15)).get(RUN, task.series).value_C[-1]:.4g}" for task in domain.tasks}
        assert any(f": {number}, expected 0." in evidence.sentence for number in seen)
    assert state.summary == f"act: {state.evidence[0].sentence}"


def test_a_small_drop_is_to_be_watched_and_one_within_the_noise_is_healthy(whole, expectation):
    found = {share: state_of(fault(whole, drop(share)), expectation).verdict for share in (0.0, 0.005, 0.04, 0.15)}
    assert [found[share] for share in (0.0, 0.005)] == [HEALTHY, HEALTHY]
    assert found[0.04] in (WATCH, ACT) and found[0.15] == ACT


def test_a_fall_of_one_domain_is_said_of_that_domain(whole, expectation):
    state = state_of(fault(whole, drop(0.2), tasks=("alpha", "beta")), expectation)
    assert {domain.domain: domain.verdict for domain in state.domains} == {"knowledge": ACT, "commonsense": HEALTHY}
    assert any(one.sentence.startswith("knowledge fell ") for one in state.evidence)


def test_a_plateau_of_the_loss_is_called_from_the_loss(whole, expectation):
    faulty = fault(whole, stands_still, tasks=(LOSS.task,), step=63_000, last=3)
    state = state_of(faulty, expectation)
    (evidence,) = state.evidence
    assert (
        (evidence.kind, evidence.domain, evidence.verdict)
        == ("loss", LOSS_DOMAIN, ACT)
        == ("loss", "loss", state.verdict)
    )
    value_C = faulty.get(RUN, LOSS.series).value_C
    assert evidence.sentence.startswith(
        f"the loss fell {-evidence.deviation:.1f} deviations below expectation over the "
    )
    over = {1: "last checkpoint", 2: "last 2 checkpoints", 3: "last 3 checkpoints"}
    assert any(
        f"{words} (most of all held_out (ce_loss, 0-shot): {value_C[-count:].mean():.4g}, exp" in evidence.sentence
        for count, words in over.items()
    )


def test_a_plateau_of_the_tasks_is_called_early_in_training(whole, expectation):
    state = state_of(fault(whole, stands_still, step=53_000, last=3), expectation)
    assert state.verdict != HEALTHY and kinds(state)["change"] >= 1 and state.change < -WATCH_FROM


def test_tasks_that_regress_while_the_loss_improves_diverge(whole, expectation):
    back = lambda value_C, late_C: np.where(late_C, value_C[~late_C][-2], value_C)  # noqa: E731
    state = state_of(fault(whole, back, step=63_000, last=2), expectation)
    (evidence,) = (one for one in state.evidence if one.kind == "divergence")
    assert evidence.verdict == WATCH and evidence.deviation == state.change
    assert f"the tasks do not ({state.change:+.1f})" in evidence.sentence
    assert "the loss improves as expected (" in evidence.sentence
    worse = changed(
        fault(whole, back, step=63_000, last=2),
        lambda c: with_values(c, c.value_C + 0.1 * (c.tokens_C == 63_000 * 2e6)) if c.task == LOSS.task else c,
    )
    assert kinds(state_of(worse, expectation))["divergence"] == 0, "the loss does not improve: they agree"


def repeat(value_C, late_C):
    return np.where(late_C, value_C[~late_C][-1], value_C)


def test_exactly_unchanged_scores_are_the_same_weights(whole, expectation):
    state = state_of(fault(whole, repeat), expectation)
    evidence = state.evidence[0]
    assert (evidence.kind, evidence.verdict, state.verdict) == ("unchanged", ACT, ACT)
    assert evidence.sentence.startswith("all 4 scores are exactly those of step 83,000: the weights have not changed.")


@pytest.mark.parametrize("tasks", [("alpha", "beta", "gamma"), ("alpha",)])
def test_one_score_that_moved_means_that_the_weights_did(whole, expectation, tasks):
    assert kinds(state_of(fault(whole, repeat, tasks=tasks), expectation))["unchanged"] == 0


def test_two_equal_scores_may_be_luck(whole):
    two = fault(whole, repeat).select(series=[law.series for law in LAWS[:2]])
    assert kinds(assess(two, RUN, references=OTHERS))["unchanged"] == 0


def with_learning_rate(table, values, *, run=RUN):
    like = table.get(run, LOSS.series)
    curve = replace(like, task="train", metric="learning_rate", num_fewshot=-1, stderr_C=np.full(len(like), np.nan))
    return CurveTable(table.runs.values(), [*table.curves, with_values(curve, values(len(like)))])


def test_a_learning_rate_of_0_before_the_end_is_called(whole, expectation):
    stopped = with_learning_rate(at(whole, NOW), lambda count: np.append(np.full(count - 1, 3e-4), 0.0))
    state = state_of(stopped, expectation)
    (evidence,) = state.evidence
    assert (evidence.kind, evidence.verdict, state.verdict) == ("learning rate", ACT, ACT)
    assert evidence.sentence == "the learning rate is 0 before the end of the run"
    running = with_learning_rate(at(whole, NOW), lambda count: np.full(count, 3e-4))
    assert state_of(running, expectation).verdict == HEALTHY


def test_a_learning_rate_of_0_at_the_end_is_the_schedule(whole, expectation):
    ended = with_learning_rate(whole, lambda count: np.append(np.full(count - 1, 3e-4), 0.0))
    assert kinds(state_of(ended, expectation))["learning rate"] == 0


def sinks(value_C, late_C):
    """A slow decline over the last checkpoints: no jump, but in the end below its best."""
    return value_C - 0.03 * np.cumsum(late_C)


def test_the_decay_of_two_tasks_is_to_be_watched_and_of_one_it_is_not(whole, expectation):
    two = state_of(fault(whole, sinks, tasks=("beta", "alpha"), last=3), expectation)
    (evidence,) = (one for one in two.evidence if one.kind == "decay")
    assert evidence.verdict == WATCH
    assert evidence.sentence.startswith(
        "2 of 4 tasks that had risen have lost part of what they had: beta, alpha (their mean"
    )
    one = state_of(fault(whole, sinks, tasks=("alpha",), last=3), expectation)
    assert kinds(one)["decay"] == 0


def test_the_decay_of_pythia_70m_is_at_least_to_be_watched():
    table = pythia(deduped=False, num_fewshot=0)
    state = assess(table, "pythia-70m", references=[])
    assert state.verdict in (WATCH, ACT) and kinds(state)["decay"] == 1
    assert "arc_easy" in next(one.sentence for one in state.evidence if one.kind == "decay")


def test_a_run_far_below_its_size_all_along_is_watched_for_its_level(whole, expectation):
    low = changed(at(whole, NOW), lambda c: with_values(c, c.value_C - 0.08) if c.run == RUN and c.task in TASKS else c)
    state = state_of(low, expectation)
    assert state.verdict == WATCH and set(kinds(state)) == {"level"}
    for domain in state.domains:
        (evidence,) = (one for one in state.evidence if one.domain == domain.domain)
        assert evidence.deviation == domain.level <= -3.0
        assert f"is {-domain.level:.1f} deviations below runs of this size and token count (" in evidence.sentence


@pytest.mark.parametrize("beyond", ["size", "tokens"])
def test_outside_the_support_of_the_references_a_fall_is_called_act_and_no_level_is_judged(whole, beyond):
    if beyond == "size":
        run, table, references = RUNS[4], whole, RUNS[:3]
    else:
        run, references = RUN, OTHERS
        table = changed(whole, lambda c: c if c.run == RUN else c.until(0.4 * TOTAL_TOKENS))
    # From what references and the run's own past make expected, before the task has lost a fifth of what it had.
    state = assess(fault(table, drop(0.15), run=run), run, references=references)
    assert state.verdict == ACT and "change" in {one.kind for one in state.evidence if one.verdict == ACT}
    assert state.basis.endswith("parameters (it is outside of them in size or length) and its own past")
    assert all(np.isnan(domain.level) for domain in state.domains)
    assert assess(at(table, NOW, run=run), run, references=references).verdict == HEALTHY


def test_in_the_first_15_percent_deviations_are_at_most_watched(whole, expectation):
    early, late = (state_of(fault(whole, drop(0.6), step=step), expectation) for step in (EARLY, 23_000))
    assert EARLY < 0.15 * 150_000 < 23_000
    assert early.verdict == WATCH and early.change < -3.3
    assert late.verdict == ACT


def test_without_references_a_run_is_held_against_its_own_past(whole):
    alone = whole.select(runs=[RUN])
    state = assess(at(alone, NOW), RUN)
    assert state.verdict == HEALTHY and state.summary == "healthy: as expected from its own past"
    assert all(np.isnan(domain.level) for domain in state.domains)
    fallen = assess(fault(alone, drop(0.3)), RUN)
    assert fallen.verdict == ACT and kinds(fallen)["change"] == 3 and fallen.basis == "its own past"


def test_references_are_by_default_the_finished_smaller_runs_of_the_family(whole):
    assert assess(at(whole, NOW), RUN).basis.startswith("2 run(s) of 400M to 800M parameters (it is outside ")
    assert assess(at(whole, NOW, run=RUNS[0]), RUNS[0]).basis == "its own past"


def test_the_worst_evidence_comes_first_and_gives_the_verdict(whole, expectation):
    both = with_learning_rate(
        fault(whole, sinks, tasks=("alpha", "beta"), last=3), lambda count: np.append(np.full(count - 1, 3e-4), 0.0)
    )
    state = state_of(both, expectation)
    ranks = [VERDICTS.index(one.verdict) for one in state.evidence]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == 2
    assert state.verdict == VERDICTS[ranks[0]] == ACT


def test_rows_are_one_for_each_task_of_each_domain(whole, expectation):
    state = state_of(fault(whole, drop(0.15)), expectation)
    rows = state_rows(state)
    assert [row["task"] for row in rows] == ["alpha", "beta", "gamma", "delta"]
    for row in rows:
        curve = fault(whole, drop(0.15)).get(RUN, TASKS[row["task"]].series)
        assert (row["run"], row["step"], row["run_verdict"], row["verdict"]) == (RUN, NOW, ACT, ACT)
        assert row["seen"] == curve.value_C[-1] and row["expected"] > row["seen"]
        assert (
            row["deviation"] < 0
            and (row["metric"], row["shots"]) == ("acc", 0)
            and row["domain"] == TASKS[row["task"]].domain
        )


def test_references_from_further_paths_are_their_finished_runs_that_do_not_decay(whole, tmp_path):
    decays = fault(whole, sinks, tasks=("alpha", "beta"), step=150_000, last=3, run=RUNS[1])
    path = write_csv(at(decays.select(runs=OTHERS), NOW, run=RUNS[4]), tmp_path / "references.csv")
    table = at(whole.select(runs=[RUN]), NOW)
    read = read_references(table, [str(path)])
    assert read.names == [RUNS[0], RUNS[3]] and set(read.table.runs) == set(RUNS)
    assert read.left_out == {
        RUNS[1]: "its own scores decay: 2 of 4 tasks that had risen have lost part of what they had: alpha, beta",
        RUNS[4]: "it is not at its planned end",
    }
    assert assess(read.table, RUN, references=read.names).verdict == HEALTHY


def test_another_run_of_the_same_name_is_no_reference_and_not_taken_for_the_one_judged(whole, tmp_path):
    own = at(whole.select(runs=[RUN]), NOW)
    other = changed(whole.select(runs=[*OTHERS, RUN]), lambda c: with_values(c, 0.9 * c.value_C) if c.run == RUN else c)
    read = read_references(own, [str(write_csv(other, tmp_path / "others.csv"))])
    assert read.names == OTHERS
    assert read.left_out == {RUN: "it has the name of another run that is judged: give one of them another name"}
    state = assess(read.table, RUN, references=read.names)
    assert (state.step, state.verdict) == (NOW, HEALTHY)


def test_a_run_that_is_judged_and_a_reference_is_there_once(whole, tmp_path):
    path = write_csv(whole, tmp_path / "all.csv")
    read = read_references(at(whole, NOW), [str(path)])
    assert read.names == RUNS and read.left_out == {} and len(read.table) == len(whole)
    assert read.table.last_tokens(RUN) == NOW * 2e6, "as it is known in the table"
    assert assess(read.table, RUN, references=read.names) == assess(at(whole, NOW), RUN, references=RUNS)


def test_an_expectation_learnt_before_gives_the_same_state(whole, expectation):
    known = fault(whole, drop(0.08))
    learnt = state_of(known, expectation)
    fresh = assess(known, RUN, references=OTHERS)
    assert learnt == fresh
