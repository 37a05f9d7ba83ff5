"""A task at several numbers of examples: each is a curve of its own, from the suite to the charts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.examiner import results_table
from probes.harness import Harness, load_harness, restore_harness
from probes.paired import read_items
from probes.plan import Plan, PlanSettings, compile_plan
from probes.report.curves import curves_of
from probes.score import Answers, CheckpointFacts, measure
from probes.store import ProbeStore
from probes.suite import Suite, TaskSpec, load_suite
from probes.tier import dashboard_values
from tests.unit.probes.test_harness import lm_eval_tasks

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")


def write(path: Path, tasks: str) -> Path:
    path.write_text(f"tasks: [{tasks}]\n")
    return path


def test_a_suite_may_list_a_task_at_several_numbers_of_examples_but_each_once(tmp_path: Path) -> None:
    two = "{task: a, domain: d, num_fewshot: 0}, {task: a, domain: d, num_fewshot: 5}"
    suite = load_suite(write(tmp_path / "two.yaml", two))
    assert suite.lines == ("a@0shot", "a@5shot") and suite.fast().lines == suite.lines
    assert load_suite(write(tmp_path / "one.yaml", "{task: a, domain: d, num_fewshot: 5}")).lines == ("a",)
    with pytest.raises(ProbeError, match="listed before with num_fewshot=5"):
        load_suite(write(tmp_path / "twice.yaml", two + ", {task: a, domain: e, num_fewshot: 5}"))


@pytest.fixture
def folder(task_folder: Path, tmp_path: Path) -> Path:
    """The tasks, and a group of two of them."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    lm_eval_tasks(task_folder, tasks)
    (tasks / "both.yaml").write_text("group: both\ntask: [t_pairs, t_every]\n")
    return tasks


def spec(task: str, shots: int | None) -> TaskSpec:
    return TaskSpec(task=task, domain="d", num_fewshot=shots)


SPECS = tuple(spec(task, shots) for task in ("t_choice", "both") for shots in (0, 3))


def compiled(specs: tuple[TaskSpec, ...], folder: Path, tokenizer: Tokenizer) -> tuple[Harness, Plan]:
    harness = load_harness(Suite("s", specs), task_paths=[folder], limit=6)
    captured = harness.capture(tokenizer, add_bos=True, max_length=512)
    return harness, compile_plan(captured, tokenizer, PlanSettings(max_length=512, add_bos=True))


def answers_to(plan: Plan) -> Answers:
    """An answer that depends on the question alone: on its tokens and on those before them."""
    lengths = plan.table.num_tokens_R * (1 + plan.table.item_R % 3) + plan.table.choice_R
    shots = np.array([task.num_fewshot for task in plan.tasks])[plan.table.task_R]
    values = -np.abs(np.sin(lengths * (shots + 1.0))) - 0.1
    return Answers(values, values > -0.5)


def test_every_number_of_examples_is_a_curve_with_the_scores_it_has_alone(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    harness, plan = compiled(SPECS, folder, tokenizer)
    plan.save(tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    answers = answers_to(plan)
    rows = measure(plan, answers, harness, FACTS, seconds=1.0)
    assert rows == measure(plan, answers, restore_harness(plan.stored, task_paths=[folder]), FACTS, seconds=1.0)
    of_task = {(row.task, row.num_fewshot, row.metric): row.value for row in rows if row.task != "mean"}
    assert len(of_task) == len([row for row in rows if row.task != "mean"])
    assert {("both", 0, "acc"), ("both", 3, "acc"), ("t_choice", 0, "acc"), ("t_choice", 3, "acc")} <= set(of_task)
    for shots in (0, 3):
        alone, own = compiled(tuple(spec(task, shots) for task in ("t_choice", "both")), folder, tokenizer)
        for row in measure(own, answers_to(own), alone, FACTS, seconds=1.0):
            if row.task != "mean":
                assert of_task[row.task, shots, row.metric] == row.value, row
    (mean,) = [row for row in rows if row.task == "mean" and row.metric == "acc"]
    lines = [of_task[task, shots, "acc"] for task in ("t_choice", "both") for shots in (0, 3)]
    assert mean.value == pytest.approx(np.mean(lines)) and mean.num_fewshot == -1

    store = ProbeStore(tmp_path)
    store.append(rows)
    assert ProbeStore(tmp_path).measurements == rows and store.complete_steps(plan) == {3}
    items = read_items(store.write_items(plan, answers, step=3))
    assert items.tasks == tuple(plan.names) and plan.names[:2] == ["t_choice@0shot", "t_choice@3shot"]

    shown = dashboard_values(rows)
    assert shown["probe-d/t_choice@3shot/acc"] == of_task["t_choice", 3, "acc"]
    assert shown["probe-d/both@0shot/acc"] == of_task["both", 0, "acc"] and "probe-d/mean/acc" in shown
    assert "probe-d/t_choice/acc" not in shown
    partly = [row for row in rows if row.num_fewshot == 3]  # the other number was lost at this checkpoint
    assert "probe-d/t_choice@3shot/acc" in dashboard_values(partly, plan.tasks)
    assert "probe-d/t_choice/acc" in dashboard_values(partly)
    assert "t_choice@0shot" in results_table(rows)
    labels = [curve.label for curve in curves_of([row.to_json() for row in rows]) if curve.metric == "acc"]
    assert len(labels) == len(set(labels)) == 9


def test_a_number_that_the_definition_says_too_is_refused_as_listed_twice(folder: Path) -> None:
    with pytest.raises(ProbeError, match="holds t_shots more than once with the same number of examples"):
        load_harness(Suite("s", (spec("t_shots", None), spec("t_shots", 2))), task_paths=[folder], limit=2)


def test_a_plan_says_which_line_differs(folder: Path, tokenizer: Tokenizer) -> None:
    _, plan = compiled(SPECS[:2], folder, tokenizer)
    other = Suite("s", (SPECS[0], spec("t_choice", 4)))
    wanted = {"limit": 6, "tokenizer": tokenizer.fingerprint, "settings": plan.settings}
    assert plan.differences(suite=Suite("s", SPECS[:2]), **wanted) == []
    assert plan.differences(suite=other, **wanted) == [
        "task t_choice@3shot is no longer in the suite",
        "task t_choice@4shot is new",
    ]
