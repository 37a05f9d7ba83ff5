import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.harness import load_harness
from probes.plan import Plan, PlanSettings, compile_plan
from probes.record import Measurement, MissingMeasurement
from probes.score import Answers
from probes.store import ProbeStore, load_measurements
from probes.suite import Suite, TaskSpec


def row(step: int, metric: str = "acc", **fields: object) -> Measurement:
    values: dict = {
        "run": "r", "step": step, "tokens": step * 10, "flops": 1.5, "suite": "s", "task": "t", "domain": "d",
        "num_fewshot": 0, "metric": metric, "value": step / 8, "stderr": None, "num_items": 3, "plan_hash": "p",
        "config_hash": "c", "seconds": 0.5,
    }  # fmt: skip
    return Measurement(**{**values, **fields})


@pytest.fixture(scope="module")
def plan(task_folder: Path, tokenizer: Tokenizer) -> Plan:
    suite = Suite("s", (TaskSpec(task="t_word", domain="d"), TaskSpec(task="t_pairs", domain="e")))
    captured = load_harness(suite, task_paths=[task_folder]).capture(tokenizer, add_bos=False, max_length=256)
    return compile_plan(captured, tokenizer, PlanSettings(max_length=256, add_bos=False))


def test_measurements_are_read_back_exactly(tmp_path: Path):
    store = ProbeStore(tmp_path)
    rows = [row(1), row(1, "gold_bpb", value=0.1 + 0.2, stderr=1e-17), row(2)]
    store.append(rows[:2])
    store.append(rows[2:])
    assert load_measurements(tmp_path / "probes.jsonl") == rows == store.measurements
    lines = (tmp_path / "probes.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {field.name for field in dataclasses.fields(Measurement)}


def test_writing_a_measurement_again_replaces_it(tmp_path: Path):
    store = ProbeStore(tmp_path)
    store.append([row(1), row(2)])
    ProbeStore(tmp_path).append([row(1, value=7.0), row(3)])
    assert load_measurements(store.path) == [row(2), row(1, value=7.0), row(3)]
    other_plan = row(1, plan_hash="q")
    ProbeStore(tmp_path).append([other_plan])
    assert other_plan in load_measurements(store.path) and len(load_measurements(store.path)) == 4


def test_a_resume_forgets_later_steps(tmp_path: Path, plan: Plan):
    store = ProbeStore(tmp_path)
    store.append([row(step) for step in (0, 1, 2, 3)])
    answers = Answers(np.zeros(len(plan.table.task_R)), np.zeros(len(plan.table.task_R), bool))
    for step in (1, 2, 3):
        store.write_items(plan, answers, step=step)
    resumed = ProbeStore(tmp_path)
    resumed.truncate_after(2)
    assert [entry.step for entry in load_measurements(store.path)] == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "items" / plan.plan_hash).iterdir()) == [
        "step_00000001.parquet",
        "step_00000002.parquet",
    ]
    resumed.truncate_after(-1)
    assert load_measurements(store.path) == []


def test_a_line_cut_short_takes_its_step_with_it_and_appending_goes_on(tmp_path: Path):
    store = ProbeStore(tmp_path)
    store.append([row(1)])
    store.append([row(2), row(2, "acc_norm"), row(2, "gold_bpb")])
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-20])
    assert [(entry.step, entry.metric) for entry in load_measurements(store.path)] == [(1, "acc")]
    resumed = ProbeStore(tmp_path)
    resumed.truncate_after(2)
    resumed.append([row(2), row(3)])
    assert [entry.step for entry in load_measurements(store.path)] == [1, 2, 3]
    assert store.path.read_bytes().endswith(b"\n")


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path):
    store = ProbeStore(tmp_path)
    store.append([row(1), row(2), row(3)])
    lines = store.path.read_text().splitlines()
    store.path.write_text("\n".join([lines[0], lines[1][:30], lines[2], ""]))
    with pytest.raises(ProbeError, match=r"probes\.jsonl, line 2"):
        ProbeStore(tmp_path)


def test_a_step_is_complete_when_all_tasks_of_the_plan_are_there_whatever_their_averages(tmp_path: Path, plan: Plan):
    store = ProbeStore(tmp_path)
    parts = [("t_word", "d"), ("t_pairs", "e"), ("mean", "d"), ("mean", "e")]
    store.append([row(1, task=t, domain=d, plan_hash=plan.plan_hash) for t, d in parts])
    store.append([row(2, task=t, domain=d, plan_hash=plan.plan_hash) for t, d in (parts[0], *parts[2:])])
    store.append([row(3, task=t, domain=d, plan_hash="other") for t, d in parts])
    store.append([row(4, task=t, domain=d, plan_hash=plan.plan_hash) for t, d in parts[:2]])
    store.append([row(5, task=t, domain=d, plan_hash=plan.plan_hash, num_fewshot=5) for t, d in parts])
    assert store.complete_steps(plan) == {1, 4}


def test_a_kill_between_values_and_what_is_missing_loses_no_value(tmp_path: Path):
    missing = MissingMeasurement(
        step=1, suite="s", plan_hash="p", task="t", domain="d", num_fewshot=0, metric="perplexity", reason="overflow"
    )
    (tmp_path / "missing.jsonl").mkdir()  # what is missing cannot be written, as if the process ended before it
    with pytest.raises(ProbeError):
        ProbeStore(tmp_path).append([row(1)], [missing])
    assert load_measurements(tmp_path / "probes.jsonl") == [row(1)]


def test_answers_to_every_request_are_kept_in_parquet(tmp_path: Path, plan: Plan):
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    answers = Answers(-rng.random(len(plan.table.task_R)), rng.random(len(plan.table.task_R)) < 0.5)
    path = ProbeStore(tmp_path).write_items(plan, answers, step=12)
    assert path == tmp_path / "items" / plan.plan_hash / "step_00000012.parquet"
    read = pq.read_table(path)
    assert read["log_likelihood"].to_numpy().tolist() == answers.log_likelihood_R.tolist()
    assert read["is_greedy"].to_pylist() == answers.is_greedy_R.tolist()
    assert read["task"].to_pylist()[0] == "t_word" and read["task"].to_pylist()[-1] == "t_pairs"
    assert sum(read["is_gold"].to_pylist()) == 12 + 30
    assert read.schema.metadata[b"plan_hash"].decode() == plan.plan_hash


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path):
    store = ProbeStore(tmp_path)
    (tmp_path / "probes.jsonl").mkdir()
    with pytest.raises(ProbeError, match="probes.jsonl cannot be read"):
        store.append([row(1)])
    with pytest.raises(ProbeError, match="cannot be written"):
        ProbeStore(tmp_path / "gone").append([row(1)])


def test_two_writers_keep_each_others_rows(tmp_path: Path):
    training, watcher = ProbeStore(tmp_path), ProbeStore(tmp_path)
    training.append([row(1)])
    watcher.append([row(2)])
    training.append([row(1, value=9.0)])  # a rewrite of the whole file
    watcher.append([row(3)])
    assert load_measurements(training.path) == [row(2), row(1, value=9.0), row(3)]
    watcher.truncate_after(1)
    training.refresh()
    assert training.measurements == [row(1, value=9.0)]


def test_a_line_torn_by_another_writer_is_removed_before_appending(tmp_path: Path):
    store = ProbeStore(tmp_path)
    store.append([row(1)])
    with store.path.open("ab") as file:
        file.write(b'{"run": "r", "step": 2, "tok')
    store.append([row(3)])
    assert [entry.step for entry in load_measurements(store.path)] == [1, 3]
    assert store.path.read_bytes().endswith(b"\n")
