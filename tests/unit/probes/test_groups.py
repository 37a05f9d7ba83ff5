"""Scores of lm-eval's groups are those that lm-eval prints, for nested groups too, wherever a plan is used."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ProbeError
from probes.harness import Harness, load_harness, restore_harness
from probes.plan import Plan, PlanSettings, compile_plan
from probes.record import Measurement
from probes.score import CheckpointFacts, gather_answers, measure
from probes.suite import Suite, TaskSpec
from tests.unit.probes.conftest import MULTIPLE_CHOICE, sentence, write_task
from tests.unit.probes.test_harness import lm_eval_tasks

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
SIZES = {"w1": 40, "w2": 25, "w3": 60}


def listing(*metrics: str, **fields: Any) -> dict[str, Any]:
    return {"aggregate_metric_list": [{"metric": metric, "aggregation": "mean", **fields} for metric in metrics]}


GROUPS: dict[str, dict[str, Any]] = {
    "g_inner": {"task": ["w2", "w3"], **listing("acc", weight_by_size=False)},
    "g_outer": {"task": ["w1", "g_inner"], **listing("acc", weight_by_size=False)},
    "g_sized": {"task": ["w1", "w2", "w3"], **listing("acc", "acc_norm", weight_by_size=True)},
    "g_mixed": {"task": ["w1", "g_bare"], **listing("acc", filter_list=["none"]), "group_alias": "Mixed"},
    "g_bare": {"task": ["w2", "w3"]},
    "g_other": {"task": ["w1", "w2"], **listing("acc", filter_list="strict")},
    "g_alone": {"task": ["w3"], **listing("acc", weight_by_size=False)},
}


def write_group(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, **content}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks of 40, 25 and 60 items, the third without acc_norm, and groups of them."""
    folder, rnd = tmp_path / "tasks", random.Random(4)
    for name, size in SIZES.items():
        items = [
            {"question": sentence(rnd), "choices": [sentence(rnd, 1, 4) for _ in range(2)], "gold": rnd.randrange(2)}
            for _ in range(size)
        ]
        metrics = MULTIPLE_CHOICE["metric_list"][: 1 if name == "w3" else 2]
        write_task(folder, name, items, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}", "metric_list": metrics})
        path = folder / f"{name}.yaml"
        path.write_text(path.read_text().replace("${TASK_DIR}", str(folder)))
    for name, content in GROUPS.items():
        write_group(folder, name, content)
    return folder


def built(folder: Path, tokenizer: Tokenizer, group: str) -> tuple[Harness, Plan]:
    harness = load_harness(Suite("s", (TaskSpec(task=group, domain="d"),)), task_paths=[folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    return harness, compile_plan(captured, tokenizer, PlanSettings(max_length=256, add_bos=True))


def scored(harness: Harness, plan: Plan) -> list[Measurement]:
    log_probs = -np.random.default_rng(0).exponential(1.0, plan.rows.num_pairs)
    answers = gather_answers(plan, TokenLogProbs(log_probs, log_probs > -0.1))
    return measure(plan, answers, harness, FACTS, seconds=1.0)


def printed_by_lm_eval(folder: Path, copies: Path, plan: Plan, group: str) -> dict[str, dict[str, Any]]:
    """lm-eval's results, its model giving the same answers in the same order."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM

    log_probs = -np.random.default_rng(0).exponential(1.0, plan.rows.num_pairs)
    answers = gather_answers(plan, TokenLogProbs(log_probs, log_probs > -0.1))

    class Fixed(LM):
        def loglikelihood(self, requests: Any) -> Any:
            return list(zip(answers.log_likelihood_R.tolist(), answers.is_greedy_R.tolist(), strict=True))

        loglikelihood_rolling = generate_until = loglikelihood

    manager = lm_eval_tasks(folder, copies)
    found = simple_evaluate(Fixed(), tasks=[group], task_manager=manager, bootstrap_iters=100)
    return {name: found["results"][name] for name in (*SIZES, *GROUPS) if name in found["results"]}


@pytest.mark.parametrize("group", ["g_outer", "g_sized", "g_mixed", "g_other", "g_alone"])
def test_scores_and_errors_of_groups_are_those_lm_eval_prints(
    group: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
):
    harness, plan = built(folder, tokenizer, group)
    rows = {(row.task, row.metric): row for row in scored(harness, plan)}
    theirs = printed_by_lm_eval(folder, tmp_path_factory.mktemp("copies"), plan, group)
    compared = 0
    assert {name for name, _ in rows} - {"mean"} == {name for name in theirs if "acc,none" in theirs[name]} | {group}
    for name, results in theirs.items():
        for metric in ("acc", "acc_norm"):
            if f"{metric},none" in results:
                row = rows[name, metric]
                assert row.value == pytest.approx(results[f"{metric},none"], rel=1e-12), (name, metric)
                assert row.stderr == pytest.approx(results[f"{metric}_stderr,none"], rel=1e-12), (name, metric)
                compared += 1
    assert compared == {"g_outer": 7, "g_sized": 7, "g_mixed": 6, "g_other": 4, "g_alone": 2}[group]


def test_the_small_groups_that_failed_have_unweighted_means_over_all_tasks_below(folder: Path, tokenizer: Tokenizer):
    harness, plan = built(folder, tokenizer, "g_outer")
    rows = {(row.task, row.metric): row for row in scored(harness, plan)}
    acc = {name: rows[name, "acc"].value for name in SIZES}
    assert rows["g_outer", "acc"].value == pytest.approx(np.mean(list(acc.values())))
    assert rows["g_inner", "acc"].value == pytest.approx((acc["w2"] + acc["w3"]) / 2)
    assert rows["g_outer", "acc"].num_items == 125
    # What lm-eval knows nothing of goes the way of what it lists; the domain has one line, the outer group.
    bits = [rows[name, "gold_bpb"].value for name in SIZES]
    assert rows["g_outer", "gold_bpb"].value == pytest.approx(np.mean(bits))
    assert rows["mean", "acc"].value == rows["g_outer", "acc"].value
    assert plan.chance()["g_outer"] == plan.chance()["g_inner"] == 0.5


def test_a_stored_plan_scores_groups_without_data(folder: Path, tmp_path: Path, tokenizer: Tokenizer):
    harness, plan = built(folder, tokenizer, "g_outer")
    plan.save(tmp_path / "plan")
    again = Plan.load(tmp_path / "plan")
    assert again.stored.groups == plan.stored.groups and len(again.stored.groups) == 2
    restored = restore_harness(again.stored, task_paths=[folder])
    assert scored(restored, again) == scored(harness, plan)


def test_a_group_that_weights_otherwise_is_another_curve_and_no_plan_of_the_old_one(folder: Path, tokenizer: Tokenizer):
    _, plan = built(folder, tokenizer, "g_outer")
    write_group(folder, "g_outer", {"task": ["w1", "g_inner"], **listing("acc", weight_by_size=True)})
    _, other = built(folder, tokenizer, "g_outer")
    assert other.plan_hash != plan.plan_hash
    with pytest.raises(
        ProbeError, match="scores of g_outer in suite s are made in another way.*compile the plan again"
    ):
        restore_harness(plan.stored, task_paths=[folder])


def test_a_line_that_is_no_group_of_lm_evals_is_a_mean_over_items(folder: Path, tokenizer: Tokenizer):
    for name in ("w1", "w2"):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write("tag: some_tag\n")
    harness, plan = built(folder, tokenizer, "some_tag")
    rows = {(row.task, row.metric): row for row in scored(harness, plan)}
    assert rows["some_tag", "acc"].value == pytest.approx(
        (40 * rows["w1", "acc"].value + 25 * rows["w2", "acc"].value) / 65
    )


def test_a_group_named_twice_in_a_suite_is_refused(folder: Path, tokenizer: Tokenizer):
    suite = Suite("s", tuple(TaskSpec(task=name, domain="d") for name in ("g_alone", "g_mixed")))
    with pytest.raises(ProbeError, match="Suite s holds w3 more than once"):
        load_harness(suite, task_paths=[folder])
