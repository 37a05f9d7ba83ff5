from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.config.track import ConsoleConfig
from pretrain.state import RunState
from pretrain.track import names
from pretrain.track.console import ConsoleSink
from probes.state_hook import StateHook
from tests.support.synthetic_run import TOKENS_PER_STEP, measurement, run_info

STEPS, EVERY = 3000, 200
TASKS = {"piqa": "commonsense", "hellaswag": "commonsense", "arc_easy": "knowledge", "sciq": "knowledge"}


class Tracker:
    def __init__(self) -> None:
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.shown: list[tuple[int, dict[str, float]]] = []

    def event(self, kind: str, *, step: int, **fields: Any) -> None:
        json.dumps(fields, allow_nan=False)
        self.events.append((kind, step, fields))

    def warn(self, kind: str, warning: str, *, step: int, **fields: Any) -> None:
        self.event(kind, step=step, warning=warning, **fields)

    def log_views(self, values: dict[str, float], *, step: int, tokens: int) -> None:
        self.shown.append((step, values))


def bits(task: str, step: int, generator: np.random.Generator, size: float = 1.0) -> float:
    start = 2.5 + 0.1 * list(TASKS).index(task)
    return start * size * ((step + 100) / 100) ** -0.12 + float(generator.normal(0, 0.004))


def write_record(directory: Path, *, until: int, broken_from: int | None = None, name: str = "demo") -> Path:
    """A run probed every 200 steps; from one step on its tasks lose what they had gained in a fifth of the run."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(3)
    probes, metrics = [], []
    for step in range(0, until + 1, EVERY):
        for task, domain in TASKS.items():
            value = bits(task, step, generator) + (0.15 if broken_from is not None and step >= broken_from else 0.0)
            probes.append(measurement(step, domain, task, "gold_bpb", value, 0.03).to_json())
        metrics.append({"step": step, "tokens": step * TOKENS_PER_STEP, "train/loss": 6 * (step + 10) ** -0.1})
    for file, rows in (("probes.jsonl", probes), ("metrics.jsonl", metrics)):
        (directory / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.yaml").write_text(f"run: {{name: {name}}}\ntrain: {{steps: {STEPS}}}\n")
    (directory / "events.jsonl").write_text(
        json.dumps({"time": 0, "step": 0, "kind": "start", "parameters": 11_000_000}) + "\n"
    )
    return directory


def make_run(directory: Path, step: int, *, rank: int = 0) -> Any:
    return SimpleNamespace(
        state=RunState(seed=0, step=step, tokens=step * TOKENS_PER_STEP),
        tracker=Tracker(),
        info=run_info(directory, total_steps=STEPS),
        job=SimpleNamespace(rank=rank),
        calendar=SimpleNamespace(is_due=lambda at: at % EVERY == 0),
    )


def save(hook: StateHook, run: Any) -> Any:
    hook.on_start(run)
    hook.on_save(run)
    return run.tracker


def test_a_healthy_run_is_said_to_be_healthy_in_events_and_views(tmp_path):
    tracker = save(StateHook([]), make_run(write_record(tmp_path / "run", until=2800), 2800))
    [(kind, step, fields)] = tracker.events
    assert (kind, step, fields["verdict"]) == ("state", 2800, "healthy")
    assert set(fields["domains"]) == {"commonsense", "knowledge"}
    [(shown_step, values)] = tracker.shown
    assert shown_step == 2800 and values[names.STATE_VERDICT] == 0.0
    assert {"state/change", "state/commonsense/change", "state/knowledge/change"} <= values.keys()
    assert all(names.meaning(name) is not None for name in values)


def test_tasks_that_fall_are_called_in_words_with_numbers(tmp_path):
    tracker = save(StateHook([]), make_run(write_record(tmp_path / "run", until=2800, broken_from=2600), 2800))
    [(_, _, fields)] = tracker.events
    assert fields["verdict"] == "act"
    assert fields["reason"].startswith("all tasks together lost ")
    assert any("deviations below expectation" in one["sentence"] for one in fields["evidence"])
    assert {row["kind"] for row in fields["evidence"]} >= {"change", "divergence"}


def test_references_are_read_from_where_the_configuration_names_them(tmp_path):
    others = [write_record(tmp_path / name, until=STEPS, name=name) for name in ("first", "second")]
    hook = StateHook([str(path) for path in others])
    tracker = save(hook, make_run(write_record(tmp_path / "run", until=800), 800))
    [(kind, _, read), (_, _, fields)] = tracker.events
    assert (kind, read) == ("state_references", {"used": ["first", "second"], "left_out": {}})
    assert fields["basis"].startswith("2 run(s) of 11")
    assert fields["domains"]["commonsense"]["level"] is not None


def test_a_reference_of_the_same_name_is_not_taken_for_the_run(tmp_path):
    others = [write_record(tmp_path / name, until=STEPS, name=name) for name in ("first", "second")]
    namesake = write_record(tmp_path / "namesake", until=STEPS, broken_from=2600)
    hook = StateHook([str(path) for path in (*others, namesake)])
    tracker = save(hook, make_run(write_record(tmp_path / "run", until=2800), 2800))
    fields = tracker.events[-1][2]
    assert fields["basis"].startswith("2 run(s) of 11") and fields["verdict"] == "healthy"


def test_a_save_is_judged_once_a_resumed_one_included(tmp_path):
    run = make_run(write_record(tmp_path / "run", until=2800), 2800)
    hook = StateHook([])
    save(hook, run)
    hook.on_save(run)
    assert len(run.tracker.events) == 1
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"time": 1, "step": 2800, "kind": "state", "verdict": "healthy"}) + "\n" + '{"kind": "sta'
        )
    assert save(StateHook([]), make_run(tmp_path / "run", 2800)).events == []


def test_a_run_of_which_nothing_can_be_judged_is_unknown_with_the_reason_and_without_an_alert(tmp_path):
    tracker = save(StateHook([]), make_run(write_record(tmp_path / "run", until=600), 600))
    [(kind, step, fields)] = tracker.events
    assert (kind, step, fields["verdict"], fields["unknown_since"]) == ("state", 600, "unknown", 600)
    assert "checkpoints" in fields["reason"] and "warning" not in fields
    assert tracker.shown == [(600, {names.STATE_VERDICT: -1.0})]


def test_unknown_is_said_once_on_the_console_also_after_a_resumption(tmp_path):
    stream, sink = io.StringIO(), None
    sink = ConsoleSink(ConsoleConfig(), stream)
    sink.open(run_info(tmp_path, total_steps=STEPS))
    directory = tmp_path / "run"
    said = []
    for hook in (first := StateHook([])), first, StateHook([]):  # the last one is of a process that goes on
        step = 400 + 200 * len(said)
        write_record(directory, until=step)
        with (directory / "events.jsonl").open("a") as file:
            file.writelines(json.dumps({"step": at, "kind": "state", **fields}) + "\n" for at, fields in said)
        run = make_run(directory, step)
        if hook is not first or not said:
            hook.on_start(run)
        hook.on_save(run)
        [(kind, at, fields)] = run.tracker.events
        sink.event(kind, fields, step=at)
        said.append((at, fields))
    assert [fields["unknown_since"] for _, fields in said] == [400, 400, 400]
    assert len(stream.getvalue().splitlines()) == 1 and stream.getvalue().startswith("step 400  state  unknown: ")


def test_act_is_a_warning(tmp_path):
    tracker = save(StateHook([]), make_run(write_record(tmp_path / "run", until=2800, broken_from=2600), 2800))
    [(_, _, fields)] = tracker.events
    assert fields["warning"] == f"The state of the run at step 2,800 is act: {fields['reason']}"


@pytest.mark.parametrize(("rank", "step"), [(1, 2800), (0, 2799)])
def test_other_ranks_and_saves_off_the_calendar_are_silent(tmp_path, rank, step):
    directory = write_record(tmp_path / "run", until=2800)
    assert save(StateHook([]), make_run(directory, step, rank=rank)).events == []


def test_what_fails_is_an_event_and_training_goes_on(tmp_path):
    hook = StateHook([str(tmp_path / "nowhere")])
    tracker = save(hook, make_run(write_record(tmp_path / "run", until=2800), 2800))
    [(kind, _, fields)] = tracker.events
    assert kind == "state_failed" and "nowhere" in fields["cause"]


def test_the_console_says_a_state_in_one_line(tmp_path):
    stream = io.StringIO()
    sink = ConsoleSink(ConsoleConfig(), stream)
    sink.open(run_info(tmp_path, total_steps=STEPS))
    sink.event("state", {"verdict": "watch", "reason": "the loss fell", "domains": {"a": 1}}, step=200)
    assert stream.getvalue() == "step 200  state  watch: the loss fell\n"
