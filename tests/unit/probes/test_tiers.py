"""What a save scores: all of a suite, its fast tier, or what a budget allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.batch_size import BatchSizes
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import PackedRows, TokenLogProbs
from probes.store import load_measurements
from probes.suite import Suite, TaskSpec
from tests.unit.probes.test_hook import make_hook, make_run, save_at


@pytest.fixture
def wide(task_folder: Path) -> Suite:
    return Suite(
        "wide", (TaskSpec(task="t_choice", domain="choice", fast=4), TaskSpec(task="t_word", domain="word", fast=0))
    )


def tiered(run: Any, *, saves: list[int], **probe: Any) -> Any:
    for key, value in probe.items():
        setattr(run.config.probe, key, value)
    run.info.total_steps = saves[-1]
    run.calendar = SimpleNamespace(is_due=lambda step: step in saves, steps=lambda: saves)
    run.config.batch_sizes = BatchSizes.constant(4, sequence_length=25)
    return run


def test_milestones_score_all_of_the_suite_and_other_saves_its_fast_tier(
    tmp_path: Path, task_folder: Path, wide: Suite, tokenizer: Tokenizer
):
    run, hook = make_run(tmp_path, task_folder), make_hook(wide, tokenizer)
    tiered(run, saves=[0, 10, 20, 30, 35], milestones="20 steps")
    hook.on_start(run)
    save_at(hook, run, 0, 10, 20, 30, 35)
    rows = load_measurements(tmp_path / "probes.jsonl")
    steps = {name: sorted({row.step for row in rows if row.suite == name}) for name in ("wide", "wide-fast")}
    assert steps == {"wide": [0, 20, 35], "wide-fast": [0, 10, 20, 30, 35]}
    items = {(row.suite, row.task): row.num_items for row in rows if row.metric == "acc"}
    assert (items["wide", "t_choice"], items["wide-fast", "t_choice"]) == (20, 4)
    assert ("wide", "t_word") in items and ("wide-fast", "t_word") not in items
    shown = {name for step, values in run.tracker.shown if step == 10 for name in values}
    assert "probe-fast-choice/t_choice/acc" in shown and "probe-choice/t_choice/acc" not in shown


def test_a_budget_is_kept_over_thirty_saves_and_says_what_it_scored(
    tmp_path: Path, task_folder: Path, wide: Suite, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("probes.hook.time.perf_counter", lambda: clock.now)  # one module, whoever imports it
    saves = list(range(0, 300, 10))
    run, hook = make_run(tmp_path, task_folder), make_hook(wide, tokenizer)
    tiered(run, saves=saves, budget="1%")
    score, probing = run.engine.score, []

    def timed(rows: PackedRows) -> TokenLogProbs:
        probing.append(sum(len(row.tokens_S) for row in rows.rows) / 1000)
        clock.now += probing[-1]
        return score(rows)

    run.engine.score = timed
    started = clock.now
    hook.on_start(run)
    for step in range(saves[-1] + 1):
        if step:
            clock.now += 2.0
            hook.on_step(run, SimpleNamespace(seconds=2.0))
        if step in saves:
            save_at(hook, run, step)
    said = [fields for kind, _, fields in run.tracker.events if kind == "probe_budget"]
    assert len(said) == 30 and {"fast", "nothing"} <= {fields["scored"] for fields in said}
    assert all(fields["left_out"] for fields in said if fields["scored"] != "full")
    assert sum(probing) <= 0.015 * (clock.now - started)
    measured = {row.step for row in load_measurements(tmp_path / "probes.jsonl")}
    assert measured == {save for save, fields in zip(saves, said, strict=True) if fields["scored"] != "nothing"}


def test_the_fast_tier_is_the_same_items_for_ever_and_of_each_task_of_a_group(task_folder: Path, tokenizer: Tokenizer):
    from probes.harness import load_harness

    line = TaskSpec(task="t_choice", domain="d", fast=5)
    (first,), (again,) = (load_harness(Suite("s", (line,)).fast(), task_paths=[task_folder]).tasks for _ in range(2))
    docs = [instance.doc["question"] for instance in first.task.instances]
    assert docs == [instance.doc["question"] for instance in again.task.instances] and len(set(docs)) == 5
    (more,) = load_harness(Suite("s", (replace(line, fast=9),)).fast(), task_paths=[task_folder]).tasks
    assert set(docs) < {instance.doc["question"] for instance in more.task.instances}, "larger subsets hold smaller"
