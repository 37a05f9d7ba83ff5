"""A metric that cannot be computed costs itself alone, and is named with the reason; everything else is recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import PackedRows, TokenLogProbs
from pretrain.errors import ProbeError
from probes.aggregate import aggregates
from probes.beside import Settings
from probes.commands import score
from probes.examiner import Examiner
from probes.groups import GroupMetric, TaskGroup
from probes.harness import Harness, load_harness
from probes.hook import ProbeHook
from probes.journal import Journal
from probes.lm_eval_metrics import task_metrics
from probes.metrics import MetricValue, MissingMetric
from probes.plan import Plan, PlanSettings, compile_plan
from probes.record import Measurement, MissingMeasurement
from probes.report.curves import curves_of
from probes.request import TaskFacts
from probes.score import CheckpointFacts, gather_answers, measure
from probes.store import ProbeStore, load_measurements
from probes.suite import Suite, TaskSpec
from tests.unit.probes.conftest import MULTIPLE_CHOICE, write_task
from tests.unit.probes.test_hook import make_run, save_at
from tests.unit.probes.test_watch import FakeRun

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
BROKEN = """
import sys
def fail(*arguments, **keywords):
    raise KeyError("no\\nsuch key")
def leave(values):
    sys.exit("goodbye")
def not_a_number(values):
    return float("nan")
def words(values):
    return "many"
def fail_on_the_second(doc, results):
    if doc["number"] == 1:
        raise ValueError("cannot read this answer")
    return {"acc": 1.0}
def bare(values):
    import numpy as np
    return np.float64(0.25).reshape(())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks whose metrics fail: in lm-eval's aggregation, in the user's, in `process_results`, in a filter."""
    folder = tmp_path_factory.mktemp("missing")
    (folder / "broken.py").write_text(BROKEN)
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    perplexity = {**rolling, "metric_list": [{"metric": "word_perplexity"}]}
    write_task(folder, "m_text", [{"text": "thecatseesadogandrunshome" * 100}], perplexity)
    choice = [{"number": n, "question": "the cat", "choices": ["dog", "red house"], "gold": n % 2} for n in range(6)]
    asked = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"}
    sums = "metric_list:\n- {metric: acc, aggregation: !function broken.%s}\n- {metric: acc_norm}\n"
    own = {name: sums % name for name in ("fail", "leave", "not_a_number", "words", "bare")}
    own["good"] = ""
    own["results"] = "process_results: !function broken.fail_on_the_second\n"
    filters = (
        "filter_list:\n- name: strict\n  filter:\n  - function: custom\n    filter_fn: !function broken.fail\n"
        "- name: loose\n  filter:\n  - function: take_first\n"
    )
    for name, addition in {**own, "filter": filters}.items():
        definition = {key: value for key, value in asked.items() if key not in addition}
        write_task(folder, f"m_{name}", choice, definition)
        with (folder / f"m_{name}.yaml").open("a") as file:
            file.write(addition)
    return folder


def built(folder: Path, tokenizer: Tokenizer, *names: str) -> tuple[Harness, Plan]:
    suite = Suite("s", tuple(TaskSpec(task=name, domain="d") for name in names))
    harness = load_harness(suite, task_paths=[folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    return harness, compile_plan(captured, tokenizer, PlanSettings(max_length=256, add_bos=True))


def measured(harness: Harness, plan: Plan) -> tuple[list[Measurement], list[MissingMeasurement]]:
    log_probs = np.full(plan.rows.num_pairs, -30.0)
    missing: list[MissingMeasurement] = []
    answers = gather_answers(plan, TokenLogProbs(log_probs, log_probs > -1))
    return measure(plan, answers, harness, FACTS, seconds=1.0, missing=missing), missing


def test_an_aggregation_of_lm_evals_that_overflows_costs_one_metric_and_no_other(folder: Path, tokenizer: Tokenizer):
    rows, missing = measured(*built(folder, tokenizer, "m_good", "m_text"))
    assert {row.metric for row in rows if row.task == "m_good"} >= {"acc", "acc_norm", "gold_bpb", "margin"}
    (one,) = missing
    assert (one.task, one.domain, one.metric, one.step) == ("m_text", "d", "word_perplexity", 3)
    assert one.reason == "its aggregation failed: OverflowError: math range error"


@pytest.mark.parametrize(
    ("task", "metrics", "reason"),
    [
        ("m_fail", ["acc"], "its aggregation failed: KeyError: 'no\\nsuch key'"),
        ("m_leave", ["acc"], "its aggregation failed: SystemExit: goodbye"),
        ("m_not_a_number", ["acc"], "its value is nan"),
        ("m_words", ["acc"], "its value is a str, not a number"),
        ("m_results", ["acc", "acc_norm"], "process_results failed on item 1: ValueError: cannot read this answer"),
    ],
)
def test_what_a_users_code_raises_costs_what_it_was_to_compute(
    task: str, metrics: list[str], reason: str, folder: Path, tokenizer: Tokenizer
):
    rows, missing = measured(*built(folder, tokenizer, "m_good", task))
    of_task = [one for one in missing if one.task == task]
    assert [one.metric for one in of_task] == metrics
    assert {one.reason for one in of_task} == {reason}
    found = {row.metric for row in rows if row.task == task}
    assert {"gold_bpb", "norm_margin"} <= found and not found & set(metrics)
    assert {"acc", "acc_norm"} <= {row.metric for row in rows if row.task == "m_good"}
    # A mean over the other task alone would be another curve under the same name.
    lost = {one.metric: one.reason for one in missing if one.task == "mean"}
    assert not {row.metric for row in rows if row.task == "mean"} & set(metrics)
    assert lost.keys() >= set(metrics) and set(lost.values()) == {f"task {task} has none"}


def test_a_filter_that_fails_costs_its_own_metrics_and_no_other_filters(folder: Path, tokenizer: Tokenizer):
    rows, missing = measured(*built(folder, tokenizer, "m_filter"))
    assert {(one.metric, one.reason) for one in missing if one.task == "m_filter"} == {
        (f"{name},strict", "filter strict failed: KeyError: 'no\\nsuch key'") for name in ("acc", "acc_norm")
    }
    assert {"acc,loose", "acc_norm,loose", "gold_bpb"} <= {row.metric for row in rows if row.task == "m_filter"}


def test_a_report_survives_errors_too_large_for_a_number():
    rows = [
        {
            "step": 1,
            "tokens": 1,
            "domain": "d",
            "task": task,
            "metric": "word_perplexity",
            "value": 1e300,
            "stderr": 1e200,
        }
        for task in ("a", "b")
    ]
    (mean,) = [curve for curve in curves_of(rows) if curve.task == "mean"]
    assert mean.points[0].stderr == pytest.approx(1e200 / math.sqrt(2))


def test_a_number_without_dimensions_is_a_number(folder: Path, tokenizer: Tokenizer):
    rows, missing = measured(*built(folder, tokenizer, "m_bare"))
    assert not missing
    assert next(row.value for row in rows if (row.task, row.metric) == ("m_bare", "acc")) == 0.25


def test_a_standard_error_that_fails_costs_the_error_and_not_the_value(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    from probes import lm_eval_metrics

    def fail(aggregate: Any, values: Any) -> float:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(lm_eval_metrics, "standard_error", fail)
    rows, missing = measured(*built(folder, tokenizer, "m_good"))
    assert {row.stderr for row in rows if row.metric == "acc"} == {None}
    assert {one.metric for one in missing if one.task == "m_good"} == {"acc_stderr", "acc_norm_stderr"}
    assert {one.reason for one in missing} == {"its computation failed: ZeroDivisionError: division by zero"}


def test_errors_too_large_for_a_number_do_not_lose_the_suite():
    tasks = [TaskFacts(name, "d", 0, 10, line=line) for name, line in (("a", "g"), ("b", "g"), ("c", "c"))]
    values = [MetricValue(index, "word_perplexity", 1e300, 1e200, 10) for index in range(3)]
    found = [(name, value) for name, _, _, value in aggregates(tasks, [TaskGroup("g", (0, 1), line="g")], values)]
    assert [(name, value.value, value.stderr) for name, value in found if isinstance(value, MetricValue)] == [
        ("g", pytest.approx(1e300), pytest.approx(1e200 / math.sqrt(2))),
        ("mean", pytest.approx(1e300), pytest.approx(1e200 * math.sqrt(1.5) / 2)),
    ]
    huge = [MetricValue(index, "word_perplexity", 1e308, None, 10) for index in range(3)]
    lost = [
        (name, value)
        for name, _, _, value in aggregates(tasks, [TaskGroup("g", (0, 1), line="g")], huge)
        if isinstance(value, MissingMetric)
    ]
    assert lost == [
        ("g", MissingMetric(0, "word_perplexity", "its value is inf")),
        ("mean", MissingMetric(0, "word_perplexity", "task a has none")),
    ]


def test_a_group_misses_what_one_of_its_tasks_lost_and_averages_what_another_never_had():
    tasks = [TaskFacts(name, "d", 0, 10, line="g") for name in ("a", "b")]
    group = TaskGroup("g", (0, 1), (GroupMetric("acc", None, True), GroupMetric("f1", None, True)), line="g")
    found = [
        MetricValue(0, "acc", 0.5, 0.1, 10),
        MissingMetric(1, "acc", "its value is nan"),
        MetricValue(1, "f1", 0.3, 0.1, 10),
    ]
    assert [one for name, *_, one in aggregates(tasks, [group], found) if name == "g"] == [
        MissingMetric(1, "acc", "task b has none"),
        MetricValue(1, "f1", 0.3, pytest.approx(0.1), 10),
    ]


def test_items_without_a_value_are_not_behind_a_mean_that_leaves_them_out():
    from lm_eval.api.metrics import nanmean

    instances = [SimpleNamespace(doc_id=n, idx=0, doc=n, filtered_resps={"none": [0.0]}) for n in range(12)]
    task: Any = SimpleNamespace(
        _filters=[],
        instances=instances,
        aggregation=lambda: {"m": nanmean},
        process_results=lambda doc, results: {"m": math.nan if doc == 2 else float(doc)},
    )
    (value,) = task_metrics(task, 0)
    assert (value.value, value.num_items) == (pytest.approx((sum(range(12)) - 2) / 11), 11)


def test_the_first_missing_metric_is_an_error_where_nobody_collects_them(folder: Path, tokenizer: Tokenizer):
    harness, plan = built(folder, tokenizer, "m_text")
    log_probs = np.full(plan.rows.num_pairs, -30.0)
    answers = gather_answers(plan, TokenLogProbs(log_probs, log_probs > -1))
    with pytest.raises(
        ProbeError, match="Metric word_perplexity of task m_text is missing at step 3: its aggregation failed"
    ):
        measure(plan, answers, harness, FACTS, seconds=1.0)


def test_the_record_holds_no_value_that_is_not_a_number(tmp_path: Path):
    row = Measurement(run="r", step=1, tokens=1, flops=1.0, suite="s", task="t", domain="d", num_fewshot=0,
                      metric="acc", value=math.nan, stderr=None, num_items=1, plan_hash="h", config_hash="c",
                      seconds=1.0)  # fmt: skip
    with pytest.raises(ValueError, match="JSON"):
        ProbeStore(tmp_path).append([row])


def test_a_run_names_what_is_missing_at_each_save_and_warns_once(folder: Path, tmp_path: Path, tokenizer: Tokenizer):
    run = make_run(tmp_path, folder)
    run.engine.score = lambda rows: unlikely(rows)
    suite = Suite("s", (TaskSpec(task="m_good", domain="a"), TaskSpec(task="m_text", domain="b")))
    hook = ProbeHook(suite=suite, tokenizer=tokenizer, max_length=256, flops_per_token=6.0)
    hook.on_start(run)
    save_at(hook, run, 0, 10)
    events = [(step, fields) for kind, step, fields in run.tracker.events if kind == "metric_missing"]
    assert [(step, fields["task"]) for step, fields in events] == [
        (0, "m_text"), (0, "mean"), (10, "m_text"), (10, "mean"),
    ]  # fmt: skip
    assert events[0][1] == {
        "warning": "Metric word_perplexity of task m_text is missing at step 0: its aggregation failed: OverflowError: "
        "math range error.",
        "suite": "s",
        "plan_hash": hook.tiers["full"].plan.plan_hash,
        "task": "m_text",
        "domain": "b",
        "num_fewshot": 0,
        "metric": "word_perplexity",
        "reason": "its aggregation failed: OverflowError: math range error",
    }
    assert {row.step for row in load_measurements(tmp_path / "probes.jsonl") if row.task == "m_good"} == {0, 10}
    assert hook.tiers["full"].is_complete(10)
    store = ProbeStore(tmp_path)
    assert [(row.step, row.task) for row in store.missing] == [(step, fields["task"]) for step, fields in events]
    assert {row.metric for row in store.measurements if row.task == "m_text"} == set()
    assert ["warning" in fields for _, fields in events] == [True, True, False, False]


def test_a_later_score_of_the_step_replaces_what_was_missing(folder: Path, tmp_path: Path, tokenizer: Tokenizer):
    rows, missing = measured(*built(folder, tokenizer, "m_good", "m_text"))
    store = ProbeStore(tmp_path)
    store.append(rows, missing)
    assert store.missing == missing == ProbeStore(tmp_path).missing
    store.append(rows)
    assert store.missing == []
    store.append(rows, missing)
    store.truncate_after(2)
    assert store.missing == [] == store.measurements


def test_score_prints_the_reason_and_writes_it_down(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
):
    suite = tmp_path / "s.yaml"
    suite.write_text("tasks:\n- {task: m_good, domain: a}\n- {task: m_text, domain: b}\n")
    settings = Settings(suite=str(suite), task_paths=[str(folder)])
    examiner = Examiner(settings, tokenizer, max_length=256, add_bos=False, cache=None)
    target: Any = SimpleNamespace(path=tmp_path / "model", facts=FACTS, run=tmp_path)
    values = {"out": str(tmp_path / "out"), "record": True}
    score._report(target, examiner, values, unlikely(examiner.plan.rows), 1.0, None)
    printed = capsys.readouterr().out
    reason = "its aggregation failed: OverflowError: math range error"
    assert f"Metric word_perplexity of task m_text is missing at step 3: {reason}." in printed and "m_good" in printed
    written = json.loads((tmp_path / "out" / "scored.json").read_text())
    assert [(row["task"], row["metric"]) for row in written["missing"]] == [
        ("m_text", "word_perplexity"),
        ("mean", "word_perplexity"),
    ]
    for directory in (tmp_path, tmp_path / "out"):
        assert [row.metric for row in ProbeStore(directory).missing] == ["word_perplexity"] * 2
    assert [row["kind"] for row in Journal(tmp_path).rows()] == ["metric_missing"] * 2


def test_a_watcher_scores_a_step_whose_task_has_no_metric_once(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    suite = tmp_path / "s.yaml"
    suite.write_text("tasks:\n- {task: m_good, domain: d}\n- {task: m_text, domain: d}\n")
    settings = Settings(suite=str(suite), task_paths=[str(folder)])
    run = FakeRun(
        tmp_path / "run", Examiner(settings, tokenizer, max_length=256, add_bos=False, cache=None), monkeypatch
    )
    run.save(0, 10)
    for _ in range(2):
        run.watcher(until="now").run()
    assert [row["step"] for row in run.journal("scored_beside")] == [0, 10] == run.steps()
    assert [row["step"] for row in run.journal("metric_missing")] == [0, 10]


def unlikely(rows: PackedRows) -> TokenLogProbs:
    log_probs = np.full(rows.num_pairs, -30.0)
    return TokenLogProbs(log_probs, log_probs > -1)
