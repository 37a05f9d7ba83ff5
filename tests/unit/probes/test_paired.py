import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.__main__ import main
from probes.harness import Harness, load_harness
from probes.metrics import item_metrics
from probes.paired import paired_difference, read_items
from probes.plan import Plan, PlanSettings, compile_plan
from probes.score import Answers
from probes.store import ProbeStore
from probes.suite import Suite, TaskSpec

TASKS = ("t_choice", "t_word", "t_text", "t_solve")


@pytest.fixture(scope="module")
def loaded(task_folder: Path, tokenizer: Tokenizer) -> tuple[Harness, Plan]:
    suite = Suite("paired", tuple(TaskSpec(task=name, domain="d", ppl=name == "t_choice") for name in TASKS))
    harness = load_harness(suite, task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=48)
    return harness, compile_plan(captured, tokenizer, PlanSettings(max_length=48, add_bos=True))


def answered(plan: Plan, seed: int) -> Answers:
    rng = np.random.default_rng(seed)
    return Answers(-rng.exponential(2.0, len(plan.table.task_R)), rng.random(len(plan.table.task_R)) < 0.5)


def test_differences_are_those_of_the_two_checkpoints_metrics(loaded: tuple[Harness, Plan], tmp_path: Path):
    harness, plan = loaded
    both = [answered(plan, seed) for seed in (1, 2)]
    items = [read_items(ProbeStore(tmp_path).write_items(plan, answers, step=i)) for i, answers in enumerate(both)]
    values = []
    for answers in both:
        own = harness.metrics(plan.table, answers.log_likelihood_R, answers.is_greedy_R)
        found = [*own, *item_metrics(plan.table, answers.log_likelihood_R)]
        values.append({(plan.tasks[value.task].name, value.metric): value for value in found})
    compared = [
        ("t_choice", name) for name in ("acc", "acc_norm", "ppl_acc", "ppl_gold", "margin", "soft_log_per_char")
    ]
    compared += [("t_word", "acc"), ("t_word", "gold_bpb"), ("t_solve", "gold_bpb")]
    for task, metric in compared:
        result = paired_difference(*items, metric, task=task)
        one, other = (found[task, metric] for found in values)
        assert result.difference == pytest.approx(other.value - one.value), (task, metric)
        assert result.num_items == one.num_items
        # Two sets of answers drawn apart: pairing gains little, and never a factor.
        assert result.stderr == pytest.approx(math.hypot(one.stderr or 0, other.stderr or 0), rel=0.4)


def test_the_standard_error_is_that_of_the_items_differences(loaded: tuple[Harness, Plan], tmp_path: Path):
    _, plan = loaded
    first = answered(plan, 1)
    raised = np.zeros(len(first.log_likelihood_R))
    words = np.flatnonzero(plan.table.task_R == 1)
    num_bytes = plan.table.num_bytes_R[words]
    gains = np.arange(12) % 4  # bits per byte, by item
    raised[words] = gains * num_bytes * math.log(2)
    second = Answers(first.log_likelihood_R + raised, first.is_greedy_R)
    store = ProbeStore(tmp_path)
    items = [read_items(store.write_items(plan, answers, step=i)) for i, answers in enumerate((first, second))]
    result = paired_difference(*items, "gold_bpb", task="t_word")
    assert result.difference == pytest.approx(-1.5)
    assert result.stderr == pytest.approx(math.sqrt(15 / 11) / math.sqrt(12))
    assert paired_difference(*items, "bits_per_byte", task="t_text").difference == 0
    pooled = paired_difference(*items, "gold_bpb")
    assert pooled.num_items == 20 + 12 + 9
    assert pooled.difference == pytest.approx(-1.5 * 12 / 41)


def test_items_of_other_plans_tasks_and_metrics_are_refused(loaded: tuple[Harness, Plan], tmp_path: Path):
    _, plan = loaded
    path = ProbeStore(tmp_path).write_items(plan, answered(plan, 1), step=1)
    items = read_items(path)
    changed = tmp_path / "changed.parquet"
    read = pq.read_table(path)
    pq.write_table(read.replace_schema_metadata({**read.schema.metadata, b"plan_hash": b"other"}), changed)
    with pytest.raises(ProbeError, match="different plans"):
        paired_difference(items, read_items(changed))
    with pytest.raises(ProbeError, match="task='nope' is not among the items"):
        paired_difference(items, items, task="nope")
    with pytest.raises(ProbeError, match="metric='nope' is not among"):
        paired_difference(items, items, "nope")
    with pytest.raises(ProbeError, match=r"gone\.parquet cannot be read"):
        read_items(tmp_path / "gone.parquet")


def test_the_command_prints_what_two_checkpoints_of_a_run_differ_by(
    loaded: tuple[Harness, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    harness, plan = loaded
    store, run = ProbeStore(tmp_path), tmp_path
    both = [answered(plan, seed) for seed in (1, 2)]
    for step, answers in zip((10, 20), both, strict=True):
        store.write_items(plan, answers, step=step)
    assert main(["paired", f"{run}/checkpoints/step_00000010", str(run), "--output", f"{run}/paired.csv"]) == 0
    printed = capsys.readouterr().out
    assert f"{run} at step 20 minus {run}/checkpoints/step_00000010 at step 10, suite paired" in printed
    with (run / "paired.csv").open() as file:
        rows = {(row["task"], row["metric"]): row for row in csv.DictReader(file)}
    assert all(line in printed for line in ("t_choice", "t_word", "t_text", "t_solve", "all items"))
    names = [task.name for task in plan.tasks]
    for column, answers in zip(("first", "second"), both, strict=True):
        for value in harness.metrics(plan.table, answers.log_likelihood_R, answers.is_greedy_R):
            row = rows.get((names[value.task], value.metric))
            if row is not None and value.metric != "bits_per_byte":  # lm-eval weights texts by their bytes
                assert float(row[column]) == pytest.approx(value.value), (names[value.task], value.metric)
    row = rows["t_word", "acc"]
    difference, stderr = float(row["difference"]), float(row["stderr"])
    right = [answers.is_greedy_R[plan.table.task_R == 1].astype(float) for answers in both]
    assert difference == pytest.approx(np.mean(right[1] - right[0]))
    assert stderr == pytest.approx(np.std(right[1] - right[0], ddof=1) / math.sqrt(12))
    assert float(row["low_95%"]) == pytest.approx(difference - 1.96 * stderr)
    assert rows["all items", "gold_bpb"]["items"] == str(20 + 12 + 9)


def test_the_command_takes_one_task_and_any_metric_and_names_what_it_does_not_know(
    loaded: tuple[Harness, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, plan = loaded
    path = ProbeStore(tmp_path).write_items(plan, answered(plan, 1), step=10)
    assert main(["paired", str(path), str(tmp_path), "--task", "t_choice", "--metric", "all"]) == 0
    printed = capsys.readouterr().out
    assert "soft_log_per_char" in printed and "ppl_gold" in printed and "t_word" not in printed
    ProbeStore(tmp_path).write_items(dataclasses.replace(plan, suite="fast", plan_hash="f"), answered(plan, 1), step=10)
    other = tmp_path / "other"
    other.mkdir()
    ProbeStore(other).write_items(dataclasses.replace(plan, plan_hash="o"), answered(plan, 1), step=10)
    said = {
        ("--suite", "paired", "--task", "nope"): "--task nope is not among the items. Known: t_choice, t_word",
        ("--suite", "paired", "--metric", "nope"): "--metric nope is not among the items' metrics. Known: acc,",
        (): "both scored by the suites fast, paired. Choose one with --suite NAME",
        ("--suite", "nope"): "--suite nope is not among them",
    }
    for words, message in said.items():
        assert main(["paired", str(tmp_path), str(tmp_path), *words]) != 0
        assert message in capsys.readouterr().err
    for second, message in ((other, "different plans"), (tmp_path / "checkpoints/step_00000011", "answers of step_")):
        assert main(["paired", str(tmp_path), str(second)]) != 0
        assert message in capsys.readouterr().err
