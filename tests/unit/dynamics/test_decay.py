from dataclasses import replace

import numpy as np
import pytest

from probes.curves.predictions import predict
from probes.dynamics.decay import decay_of, decaying_runs
from probes.dynamics.published import pythia
from probes.dynamics.references import family_references
from probes.dynamics.state import assess
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve
from probes.dynamics.trust import judge
from probes.state_hook import event_fields
from tests.support.curve_family import SIZES, family, run_of

TOTAL_TOKENS = 3e11
SHARE = np.arange(1, 21) / 20
SMALL_RUN_STEPS = (0, 10, 30, 75, 300, 600, 900, 1200, 1500, 1600)
SMALL_RUN = {  # a real run of 0.8M parameters; some parts of BLiMP are answered by length and by single frequent words
    "bl_anaphor_agreement": (0.69, 0.64, 0.73, 0.638, 0.708, 0.512, 0.555, 0.49, 0.412, 0.41),
    "bl_s-selection": (0.67, 0.7, 0.698, 0.702, 0.68, 0.668, 0.682, 0.652, 0.645, 0.642),
    "bl_filler_gap_dependency": (0.468, 0.72, 0.748, 0.732, 0.712, 0.698, 0.65, 0.658, 0.665, 0.66),
    "bl_irregular_forms": (0.452, 0.525, 0.598, 0.41, 0.452, 0.65, 0.72, 0.745, 0.758, 0.75),
}


def curve(task, values, *, metric="acc", share=SHARE, chance=0.25, stderr=0.012, run="run", total=TOTAL_TOKENS):
    share = np.asarray(share, float)
    errors = np.full(len(share), stderr)
    return make_curve(
        share * 143_000,
        share * total,
        np.asarray(values, float),
        errors,
        run=run,
        series=Series(task, metric, 0),
        domain="language",
        chance=chance,
    )


def table_of(*curves, total=TOTAL_TOKENS):
    return CurveTable([RunFacts(name="run", total_tokens=total)], curves)


def swinging(rng, *, high=0.3, noise=0.008, share=SHARE):
    """A curve that has risen soon and then only swings: what luck can do at most."""
    return 0.25 + high * (1 - np.exp(-share / 0.03)) + rng.normal(0, noise, len(share))


def falling(rng, by=0.08, **kind):
    values = swinging(rng, **kind)
    values[-4:] -= by
    return values


def healthy_runs(tasks, runs, *, are_parts):
    rng = np.random.default_rng(tasks)
    found = []
    for _ in range(runs):
        both = rng.normal(0, 0.006, len(SHARE))
        curves = []
        for task in range(tasks):
            values = np.full(len(SHARE), 0.25) + rng.normal(0, 0.008, len(SHARE))
            if task % 3:  # every third is at chance
                values = swinging(rng, high=rng.uniform(0.1, 0.5)) + (both if are_parts else 0.0)
            curves.append(curve(f"blimp_{task}" if are_parts else f"task{task}", values))
        found.append(decay_of(table_of(*curves), "run"))
    return found


@pytest.mark.parametrize("tasks,runs,are_parts", [(5, 40, False), (67, 10, True), (200, 5, False)])
def test_no_healthy_run_decays_however_many_its_tasks(tasks, runs, are_parts):
    found = healthy_runs(tasks, runs, are_parts=are_parts)
    assert not any(one.decays for one in found)
    assert tasks < 200 or all(len(one.tasks) >= 2 for one in found), "two of so many fall by luck"


@pytest.mark.slow
@pytest.mark.parametrize("tasks,runs", [(5, 500), (20, 200), (67, 100), (200, 40)])
@pytest.mark.parametrize("are_parts", [False, True], ids=["tasks", "parts of one benchmark"])
def test_at_most_one_healthy_run_in_a_hundred_decays(tasks, runs, are_parts):
    assert sum(one.decays for one in healthy_runs(tasks, runs, are_parts=are_parts)) <= 0.01 * runs


def test_half_of_many_tasks_that_fall_are_a_run_that_decays():
    rng = np.random.default_rng(0)
    curves = [curve(f"task{n}", falling(rng) if n % 2 else swinging(rng)) for n in range(40)]
    found = decay_of(table_of(*curves), "run")
    assert found.decays and found.p_value < 1e-6 and len(found.tasks) >= 20
    assert found.reason.startswith(f"{len(found.tasks)} of 40 tasks that had risen have lost part of what they had: ")


def test_metrics_splits_and_shots_of_one_task_are_one_task():
    rng = np.random.default_rng(1)
    same = [curve("exam_val", falling(rng)), curve("exam_test", falling(rng))]
    same += [curve("exam_test", falling(rng), metric="acc_norm"), replace(same[0], num_fewshot=5)]
    others = [curve(name, swinging(rng)) for name in ("alpha", "beta", "gamma")]
    found = decay_of(table_of(*same, *others), "run")
    assert len(found.tasks) == 1 and found.num_tasks == 4 and not found.decays
    two = decay_of(table_of(*same, curve("other", falling(rng)), *others), "run")
    assert len(two.tasks) == 2 and two.num_tasks == 5 and two.decays


def test_of_a_tasks_metrics_the_one_that_rose_most_clearly_speaks():
    rng = np.random.default_rng(2)
    bits = [curve(f"task{n}", 2.0 - 3 * SHARE**0.3, metric="gold_bpb", chance=np.nan) for n in range(3)]
    scores = [curve(f"task{n}", falling(rng)) for n in range(3)]
    assert decay_of(table_of(*scores), "run").decays
    found = decay_of(table_of(*bits, *scores), "run")
    assert found.num_tasks == 3 and not found.tasks


def test_parts_of_a_benchmark_that_fall_together_speak_once_and_loudly_only_when_most_do():
    rng = np.random.default_rng(3)
    lone = [curve(name, swinging(rng)) for name in ("alpha", "beta")]
    few = [curve(f"blimp_{n}", falling(rng) if n < 4 else swinging(rng)) for n in range(67)]
    assert not decay_of(table_of(*few, *lone), "run").decays
    most = [curve(f"blimp_{n}", falling(rng) if n < 50 else swinging(rng)) for n in range(67)]
    found = decay_of(table_of(*most, *lone), "run")
    assert found.decays and found.tasks == ("blimp (67 of 67 parts)",) and found.num_tasks == 3


def test_a_score_that_the_untrained_model_has_cannot_be_lost():
    share = np.r_[0.0, 0.002, SHARE]
    lost = np.r_[0.7, 0.71, np.linspace(0.7, 0.5, 20)]
    learnt = np.r_[0.5, 0.5, np.linspace(0.5, 0.7, 12), np.linspace(0.7, 0.55, 8)]
    first, second = judge(
        table_of(curve("had", lost, share=share, chance=0.5), curve("learnt", learnt, share=share, chance=0.5))
    )
    assert first.floor == 0.71 and not first.risen and not first.decays and first.decayed > 0.15
    assert second.floor == 0.5 and second.risen and second.decays and not second.trusted


def test_bits_per_byte_have_the_floor_in_their_own_unit_and_downwards():
    share = np.r_[0.0, 0.002, SHARE]
    values = np.r_[4.0, 3.0, np.linspace(2.5, 1.0, 14), np.linspace(1.0, 1.6, 6)]
    (verdict,) = judge(table_of(curve("task", values, share=share, metric="gold_bpb", chance=np.nan, stderr=np.nan)))
    assert verdict.floor == pytest.approx(np.mean([2.5, 2.5 - 1.5 / 13, 2.5 - 3 / 13])), "the first three count"
    assert verdict.risen and verdict.decays
    slow = np.r_[1.2, 1.1, np.linspace(2.5, 1.3, 14), np.linspace(1.3, 1.6, 6)]
    (verdict,) = judge(table_of(curve("task", slow, share=share, metric="gold_bpb", chance=np.nan, stderr=np.nan)))
    assert verdict.floor == 1.1 and not verdict.risen and not verdict.decays


def test_parts_of_blimp_that_an_untrained_model_answers_are_not_lost_by_a_real_healthy_run():
    share, total = np.array(SMALL_RUN_STEPS) / 1600, 1600 * 2048.0
    curves = [curve(n, v, share=share, chance=0.5, stderr=0.025, total=total) for n, v in SMALL_RUN.items()]
    table = table_of(*curves, total=total)
    assert {one.series.task for one in judge(table) if one.risen} == {"bl_irregular_forms"}
    found = decay_of(table, "run")
    assert not found.tasks and not found.decays
    assert not [one for one in assess(table, "run").evidence if one.kind == "decay"]


def test_a_healthy_run_with_many_tasks_stays_a_reference():
    table, small = family(), run_of(SIZES[1])
    tokens_C = next(iter(table.of_run(small))).tokens_C
    rng = np.random.default_rng(4)
    share = tokens_C / tokens_C[-1]
    blimp = [
        curve(f"blimp_{n}", swinging(rng, share=share), share=share, run=small, total=tokens_C[-1]) for n in range(67)
    ]
    assert sum(one.decays for one in judge(CurveTable([], blimp))) >= 2, "by luck"
    more = CurveTable(table.runs.values(), [*table.curves, *blimp])
    assert small in family_references(more, run_of(SIZES[3])).names


@pytest.mark.parametrize("num_fewshot", [0, 5])
@pytest.mark.parametrize("deduped", [False, True], ids=["standard", "deduped"])
def test_of_pythia_exactly_the_two_smallest_decay_with_all_that_was_measured(deduped, num_fewshot):
    table = pythia(deduped=deduped, num_fewshot=num_fewshot)
    found = decaying_runs(table, list(table.runs))
    suffix = "-deduped" if deduped else ""
    assert set(found) == {f"pythia-70m{suffix}", f"pythia-160m{suffix}"}
    assert all({"sciq", "arc_easy"} <= set(one.tasks) or "lambada_openai" in one.tasks for one in found.values())


def test_a_smaller_run_that_is_no_reference_is_named_with_the_reason():
    table, (first, second, run) = family(), [run_of(size) for size in (SIZES[0], SIZES[1], SIZES[3])]
    falls = {"alpha", "beta", "gamma"}

    def fallen(one):
        late_C = np.arange(len(one)) >= len(one) - 4
        is_fallen = one.run == second and one.task in falls
        return replace(one, value_C=one.value_C - 0.1 * late_C) if is_fallen else one

    table = CurveTable(table.runs.values(), [fallen(one) for one in table]).until(first, 1e11)
    held = family_references(table, run)
    assert held.names == [run_of(SIZES[2])]
    assert held.left_out[first] == "it is not at its planned end"
    assert held.left_out[second].startswith("its own scores decay: 3 of 4 tasks that had risen have lost part of what")
    state = assess(table, run)
    assert state.no_references == held.left_out and event_fields(state)["no_references"] == held.left_out
    assert not assess(table, run, references=[first]).no_references
    found = predict(table, run=run, seen=0.3, metric="ce_loss")
    assert found.left_out == held.left_out
    assert f"{first} is no reference: it is not at its planned end." in found.text()
