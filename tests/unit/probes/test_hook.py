from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.config.probe import ProbeConfig
from pretrain.config.tokenizer import TokenizerConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import PackedRows, TokenLogProbs
from pretrain.errors import EngineError, ProbeError
from pretrain.state import RunState
from probes.hook import ProbeHook
from probes.store import load_measurements
from probes.suite import Suite, TaskSpec
from probes.tier import dashboard_values
from tests.unit.probes.conftest import write_task


class Job:
    """One rank of a job whose ranks run one after the other; rank 0's results reach the others by `told`."""

    def __init__(self, rank: int, told: list[Any]) -> None:
        self.rank, self.told, self.world_size = rank, told, 2
        self._heard: Iterator[Any] = iter(told)
        self.others = 0  # the largest of the other ranks' values

    def once(self, work: Callable[[], Any]) -> Any:
        if self.rank == 0:
            try:
                self.told.append(work())
            except Exception as error:
                self.told.append(error)
        result = self.told[-1] if self.rank == 0 else next(self._heard)
        if isinstance(result, Exception):
            raise result
        return result

    def maximum(self, value: int) -> int:
        return max(value, self.others)

    def everywhere(self, work: Callable[[], Any], *, what: str) -> Any:
        result = work()
        if self.others:
            raise EngineError(f"{what} failed on rank {self.others - 1}: OSError: no disk")
        return result


class Engine:
    """Scores every pair by a fixed random number; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken = False

    def score(self, rows: PackedRows) -> TokenLogProbs:
        self.asked.append(rows.digest)
        log_probs = -np.random.default_rng(0).exponential(1.0, rows.num_pairs)
        return TokenLogProbs(log_probs * np.nan if self.broken else log_probs, log_probs > -1)


class Tracker:
    def __init__(self) -> None:
        self.events: list[tuple[str, int | None, dict[str, Any]]] = []
        self.shown: list[tuple[int, dict[str, float]]] = []

    def event(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        self.events.append((kind, step, fields))

    def warn(self, kind: str, warning: str, *, step: int, **fields: Any) -> None:
        self.event(kind, step=step, warning=warning, **fields)

    def log_views(self, values: dict[str, float], *, step: int, tokens: int) -> None:
        self.shown.append((step, dict(values)))


def make_run(
    directory: Path, task_folder: Path, *, rank: int = 0, told: list[Any] | None = None, resume: int = -1
) -> Any:
    directory.mkdir(parents=True, exist_ok=True)
    probe = ProbeConfig(task_paths=[str(task_folder)], tokens_per_row=1024)
    return SimpleNamespace(
        config=SimpleNamespace(probe=probe, tokenizer=TokenizerConfig()),
        state=RunState(seed=0, step=max(resume, 0), tokens=max(resume, 0) * 100),
        engine=Engine(),
        tracker=Tracker(),
        info=SimpleNamespace(directory=directory, name="demo", config_hash="c", resume_step=resume, total_steps=1000),
        job=Job(rank, told if told is not None else []),
        calendar=SimpleNamespace(is_due=lambda step: step % 10 == 0),
    )


@pytest.fixture
def two_tasks() -> Suite:
    return Suite("two", (TaskSpec(task="t_word", domain="language"), TaskSpec(task="t_blank", domain="choice")))


def make_hook(suite: Suite, tokenizer: Tokenizer) -> ProbeHook:
    return ProbeHook(suite=suite, tokenizer=tokenizer, max_length=256, flops_per_token=6.0)


def save_at(hook: ProbeHook, run: Any, *steps: int) -> None:
    for step in steps:
        run.state.step, run.state.tokens = step, step * 100
        hook.on_save(run)


def test_each_save_is_measured_recorded_and_shown(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    run, hook = make_run(tmp_path, task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(run)
    save_at(hook, run, 0, 10)
    hook.on_end(run)
    rows = load_measurements(tmp_path / "probes.jsonl")
    assert {row.step for row in rows} == {0, 10}
    assert {row.flops for row in rows if row.step == 10} == {6000.0}
    assert [kind for kind, *_ in run.tracker.events] == ["probe_plan", "probe", "probe"]
    fields = run.tracker.events[-1][2]
    assert fields["seconds"] >= fields["score_seconds"] > 0 and fields["tokens"] == hook.tiers["full"].plan.num_tokens
    step, shown = run.tracker.shown[-1]
    assert step == 10
    assert {"probe-language/t_word/acc", "probe-choice/mean/gold_bpb", "probe-choice/t_blank/norm_margin"} <= set(shown)
    assert not any("per_byte" in name for name in shown)
    assert len(list((tmp_path / "items").rglob("*.parquet"))) == 2
    assert shown == dashboard_values([row for row in rows if row.step == 10])


def test_other_ranks_load_the_plan_and_score_the_same_rows(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    told: list[Any] = []
    runs = [make_run(tmp_path, task_folder, rank=rank, told=told) for rank in (0, 1)]
    hooks = [make_hook(two_tasks, tokenizer) for _ in runs]
    for hook, run in zip(hooks, runs, strict=True):
        hook.on_start(run)
        save_at(hook, run, 10)
    assert hooks[1].tiers["full"].plan.plan_hash == hooks[0].tiers["full"].plan.plan_hash
    assert runs[0].engine.asked == runs[1].engine.asked == [hooks[0].tiers["full"].plan.rows.digest]
    assert runs[1].tracker.events == runs[1].tracker.shown == []
    assert isinstance(told[1][0], str)  # what is broadcast is small


def test_a_task_that_cannot_be_scored_stops_every_rank_before_training(tmp_path: Path, tokenizer: Tokenizer):
    definition = {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{q}}",
        "doc_to_image": "q",
    }
    write_task(tmp_path, "written", [{"q": "a"}], definition)
    suite = Suite("bad", (TaskSpec(task="written", domain="d"),))
    told: list[Any] = []
    for rank in (0, 1):
        run = make_run(tmp_path, tmp_path, rank=rank, told=told)
        with pytest.raises(ProbeError, match="Task written has images or sound"):
            make_hook(suite, tokenizer).on_start(run)


def test_a_measurement_that_fails_is_an_event_and_training_goes_on(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    run, hook = make_run(tmp_path, task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(run)
    run.engine.broken = True
    save_at(hook, run, 10)
    run.engine.broken = False
    save_at(hook, run, 20)
    kind, step, fields = run.tracker.events[1]
    assert (kind, step) == ("probe_failed", 10) and "not finite" in fields["cause"]
    assert {row.step for row in load_measurements(tmp_path / "probes.jsonl")} == {20}


def test_a_scorer_that_fails_is_an_event_and_the_next_save_is_measured(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    run, hook = make_run(tmp_path, task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(run)
    score = run.engine.score

    def fail(rows: PackedRows) -> TokenLogProbs:
        raise MemoryError("no memory")

    run.engine.score = fail
    save_at(hook, run, 10)
    run.engine.score = score
    save_at(hook, run, 20)
    kind, step, fields = run.tracker.events[1]
    assert (kind, step, fields["suite"], fields["cause"]) == ("probe_failed", 10, "two", "MemoryError: no memory")
    assert {row.step for row in load_measurements(tmp_path / "probes.jsonl")} == {20}


def test_a_rank_that_fails_alone_fails_the_probe_on_every_rank(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
):
    told: list[Any] = []
    runs = [make_run(tmp_path, task_folder, rank=rank, told=told) for rank in (0, 1)]
    hooks = [make_hook(two_tasks, tokenizer) for _ in runs]
    for hook, run in zip(hooks, runs, strict=True):
        hook.on_start(run)

    def fail(rows: PackedRows) -> TokenLogProbs:
        raise RuntimeError("a bad chip")

    runs[0].job.others = 2  # rank 1 + 1
    runs[1].engine.score = fail
    for hook, run in zip(hooks, runs, strict=True):
        save_at(hook, run, 10)
    kind, _, fields = runs[0].tracker.events[-1]
    assert (kind, fields["suite"], fields["part"]) == ("probe_failed", "two", "scoring")
    assert fields["cause"] == "rank 1 failed; its output says why"
    assert "rank 1 could not score step 10: RuntimeError: a bad chip" in capsys.readouterr().err
    assert not (tmp_path / "probes.jsonl").exists()
    runs[0].job.others = 0
    save_at(hooks[0], runs[0], 20)
    assert {row.step for row in load_measurements(tmp_path / "probes.jsonl")} == {20}


@pytest.fixture
def compiled(tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer) -> Path:
    """A plan that another run has compiled."""
    hook = make_hook(two_tasks, tokenizer)
    hook.on_start(make_run(tmp_path / "other", task_folder))
    return tmp_path / "other" / "plans" / hook.tiers["full"].plan.plan_hash


def test_a_plan_compiled_before_needs_no_data(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer, compiled: Path, monkeypatch: Any
):
    import datasets

    first, hook = make_run(tmp_path / "first", task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(first)
    save_at(hook, first, 10)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a data set was asked for")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    told: list[Any] = []
    hooks = []
    for rank in (0, 1):
        run, hook = make_run(tmp_path / "second", task_folder, rank=rank, told=told), make_hook(two_tasks, tokenizer)
        run.config.probe.plan = str(compiled)
        hook.on_start(run)
        save_at(hook, run, 10)
        hooks.append(hook)
    assert hooks[0].tiers["full"].plan.plan_hash == hooks[1].tiers["full"].plan.plan_hash == compiled.name
    assert (tmp_path / "second" / "plans" / compiled.name / "items.json.gz").exists()
    found, expected = (load_measurements(tmp_path / name / "probes.jsonl") for name in ("second", "first"))
    assert [(row.task, row.metric, row.value, row.stderr) for row in found] == [
        (row.task, row.metric, row.value, row.stderr) for row in expected
    ]


def test_a_plan_of_something_else_stops_every_rank_and_each_difference_is_named(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer, compiled: Path
):
    told: list[Any] = []
    for rank in (0, 1):
        run = make_run(tmp_path / "run", task_folder, rank=rank, told=told)
        run.config.probe.plan, run.config.probe.limit = str(compiled), 3
        run.config.tokenizer.add_bos = True
        hook = ProbeHook(suite=two_tasks, tokenizer=tokenizer, max_length=128, flops_per_token=6.0)
        with pytest.raises(ProbeError) as error:
            hook.on_start(run)
        assert "probe.plan=" in str(error.value)
        for difference in ("limit None, now 3", "max_length 256, now 128", "add_bos False, now True"):
            assert f"\n- {difference}\n" in str(error.value)


def test_a_damaged_plan_that_was_asked_for_stops_the_run(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer, compiled: Path
):
    (compiled / "plan.npz").write_bytes(b"damaged")
    run = make_run(tmp_path / "run", task_folder)
    for plan, message in ((compiled, "plan.npz does not agree"), (tmp_path / "nowhere", "there is no such folder")):
        run.config.probe.plan = str(plan)
        with pytest.raises(ProbeError, match=message):
            make_hook(two_tasks, tokenizer).on_start(run)


def test_a_rank_that_cannot_read_the_plan_stops_every_rank(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    told: list[Any] = []
    make_hook(two_tasks, tokenizer).on_start(make_run(tmp_path, task_folder, told=told))
    with pytest.raises(ProbeError, match="is not a compiled suite: it does not exist"):
        make_hook(two_tasks, tokenizer).on_start(make_run(tmp_path / "elsewhere", task_folder, rank=1, told=told))
    run = make_run(tmp_path, task_folder, told=told)
    run.job.others = 2
    with pytest.raises(ProbeError, match="Reading the plan failed on rank 1: OSError: no disk"):
        make_hook(two_tasks, tokenizer).on_start(run)


def test_a_resumed_run_measures_no_step_twice_and_drops_later_ones(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    first, hook = make_run(tmp_path, task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(first)
    save_at(hook, first, 0, 10, 20)
    before = load_measurements(tmp_path / "probes.jsonl")
    resumed, hook = make_run(tmp_path, task_folder, resume=10), make_hook(two_tasks, tokenizer)
    hook.on_start(resumed)
    save_at(hook, resumed, 10)
    assert resumed.engine.asked == []
    save_at(hook, resumed, 20)
    assert len(resumed.engine.asked) == 1
    after = load_measurements(tmp_path / "probes.jsonl")
    assert [(row.step, row.task, row.metric, row.value) for row in after] == [
        (row.step, row.task, row.metric, row.value) for row in before
    ]


def test_a_step_that_was_not_measured_before_the_crash_is_made_up_for(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    first, hook = make_run(tmp_path, task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(first)
    save_at(hook, first, 0)
    resumed, hook = make_run(tmp_path, task_folder, resume=10), make_hook(two_tasks, tokenizer)
    hook.on_start(resumed)
    save_at(hook, resumed, 10)
    assert {row.step for row in load_measurements(tmp_path / "probes.jsonl")} == {0, 10}


def test_nothing_is_measured_off_the_calendar(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer
):
    run, hook = make_run(tmp_path, task_folder), make_hook(two_tasks, tokenizer)
    hook.on_start(run)
    save_at(hook, run, 7)
    assert run.engine.asked == []


def test_a_compiled_plan_is_used_again_and_a_damaged_one_compiled_anew(
    tmp_path: Path, task_folder: Path, two_tasks: Suite, tokenizer: Tokenizer, monkeypatch: Any
):
    import probes.compile as module

    compiled: list[int] = []
    original = module.compile_plan
    monkeypatch.setattr(module, "compile_plan", lambda *a: compiled.append(1) or original(*a))

    def start() -> Path:
        hook = make_hook(two_tasks, tokenizer)
        hook.on_start(make_run(tmp_path, task_folder))
        return tmp_path / "plans" / hook.tiers["full"].plan.plan_hash / "plan.npz"

    start()
    path = start()
    assert len(compiled) == 1
    path.write_bytes(b"damaged")
    start()
    start()
    assert len(compiled) == 2
