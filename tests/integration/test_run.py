"""Whole runs: what a user starts, kills, starts again, compares and exports."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.data.inspect import show_step
from tests.support import runs
from tests.support.lm_eval_answers import lm_eval_answers
from tests.support.published import publish_export

LAST = "checkpoints/step_00000024"


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run with probes and exports."""
    log = folder / "whole.log"
    code = runs.finish(runs.overrides(folder, "whole", "checkpoint.export=all"), log=log)
    assert code == 0, log.read_text()[-5000:]
    return folder / "runs" / "whole"


def _without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock measured."""
    timed = ("perf/", "time/", "seconds", "run", "config_hash")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]


def test_the_run_directory_is_as_documented(whole: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "probes.jsonl", "events.jsonl", "checkpoints", "export", "wandb"} <= set(
        os.listdir(whole)
    )
    assert sorted(os.listdir(whole / "checkpoints")) == [
        "latest",
        *(f"step_{step:08d}" for step in (0, 2, 5, 10, 20, 24)),
    ]
    rows = runs.metrics(whole)
    assert [row["step"] for row in rows] == list(range(25))
    required = {
        "tokens",
        "flops",
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "perf/tokens_per_second",
        "perf/step_seconds",
        "data/tales/tokens",
        "data/lists/tokens",
    }
    assert all(required <= row.keys() for row in rows[1:])
    assert {row["step"] for row in runs.probes(whole)} == {0, 2, 5, 10, 20, 24}


def test_the_mixture_is_kept_and_the_model_learns(whole: Path) -> None:
    rows = runs.metrics(whole)
    last = rows[-1]
    assert last["data/tales/tokens"] == 3 * last["data/lists/tokens"] == 18 * 8 * 128
    for domain in ("tales", "lists"):
        losses = [row[f"validation/{domain}/loss"] for row in rows if f"validation/{domain}/loss" in row]
        assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]


def test_the_same_command_again_changes_nothing(whole: Path, folder: Path) -> None:
    before = {name: (whole / name).read_bytes() for name in ("metrics.jsonl", "probes.jsonl")}
    log = folder / "again.log"
    assert runs.finish(runs.overrides(folder, "whole", "checkpoint.export=all"), log=log) == 0, log.read_text()[-5000:]
    assert {name: (whole / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_the_same_command_restores_a_configuration_that_a_crash_emptied(whole: Path, folder: Path) -> None:
    before = (whole / "config.yaml").read_bytes()
    (whole / "config.yaml").write_bytes(b"")
    log = folder / "restored.log"
    assert runs.finish(runs.overrides(folder, "whole", "checkpoint.export=all"), log=log) == 0, log.read_text()[-5000:]
    assert (whole / "config.yaml").read_bytes() == before
    (event,) = [event for event in runs.events(whole) if event["kind"] == "config_restored"]
    assert "config.yaml is empty (0 bytes)" in event["warning"] and event["warning"] in log.read_text()
    assert "Settings that may change" not in event["warning"], "the checkpoint was made by exactly this configuration"


def test_a_changed_length_is_refused_before_anything_is_written(whole: Path, folder: Path) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in whole.rglob("*") if path.is_file()}

    before = files()
    longer = ["whole has reached step 24", "from 24 steps (24,576 tokens) to 40 steps", "from 3e-05 to 0.00"]
    shorter = ["train.steps=12 is 12 steps, but whole has reached step 24", "at least 24 steps"]
    for number, (steps, words) in enumerate(((40, longer), (12, shorter))):
        log = folder / f"length{number}.log"
        arguments = runs.overrides(folder, "whole", "checkpoint.export=all", f"train.steps={steps}")
        assert runs.finish(arguments, processes=1, log=log) != 0
        assert all(word in log.read_text() for word in words), log.read_text()[-3000:]
    assert files() == before


@pytest.mark.slow  # in every test run: tests/integration/test_recipes.py
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_a_random_step_and_started_again_is_bitwise_the_same(folder: Path, whole: Path, seed: int) -> None:
    name, log = f"killed{seed}", folder / f"killed{seed}.log"
    directory, arguments = folder / "runs" / name, runs.overrides(folder, name)
    for step in sorted(random.Random(seed).sample(range(1, 24), 2)):
        process = runs.start(arguments, log=log)
        runs.wait_until_step(directory, step, process)
        assert process.poll() is None, log.read_text()[-5000:]
        runs.kill(process)
    assert runs.finish(arguments, log=log) == 0, log.read_text()[-5000:]
    runs.assert_same_state(whole / LAST, directory / LAST)
    assert _without_times(runs.metrics(directory)) == _without_times(runs.metrics(whole))
    assert _without_times(runs.probes(directory)) == _without_times(runs.probes(whole))
    assert any(event["kind"] == "resume" for event in runs.events(directory))
    wandb_runs = {path.name.rsplit("-", 1)[1] for path in (directory / "wandb").glob("offline-run-*")}
    assert len(wandb_runs) == 1, "every start continues the same W&B run"


def test_a_run_without_probes_ends_with_bitwise_the_same_weights(folder: Path, whole: Path) -> None:
    log = folder / "unprobed.log"
    assert runs.finish(runs.overrides(folder, "unprobed", "probe=off"), log=log) == 0, log.read_text()[-5000:]
    directory = folder / "runs" / "unprobed"
    assert not (directory / "probes.jsonl").exists()
    runs.assert_same_state(whole / LAST, directory / LAST)


def test_tensor_parallel_trains_and_scores_like_data_parallel(folder: Path, whole: Path) -> None:
    log = folder / "tensor.log"
    assert runs.finish(runs.overrides(folder, "tensor", "parallel.tensor=2"), log=log) == 0, log.read_text()[-5000:]
    directory = folder / "runs" / "tensor"
    losses = [[row["train/loss"] for row in runs.metrics(path)[1:21]] for path in (directory, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    start = [[row for row in runs.probes(path) if row["step"] == 0] for path in (directory, whole)]
    for got, expected in zip(*start, strict=True):
        assert (got["task"], got["metric"]) == (expected["task"], expected["metric"])
        assert got["value"] == pytest.approx(expected["value"], rel=1e-5, abs=1e-9)  # fp32 sums in another order


def test_a_signal_to_one_rank_saves_and_stops_all_and_the_run_continues(folder: Path, whole: Path) -> None:
    from pretrain.train import EXIT_STOPPED

    log, directory = folder / "signal.log", folder / "runs" / "signal"
    arguments = runs.overrides(folder, "signal", "track=[jsonl]", "probe=off")
    process = runs.start(arguments, processes=1, log=log)
    runs.wait_until_step(directory, 7, process)
    ranks = _children(process.pid)
    os.kill(ranks[0], signal.SIGTERM)
    assert process.wait(60) != 0
    assert f"exitcode  : {EXIT_STOPPED}" in log.read_text()
    stopped = [event for event in runs.events(directory) if event["kind"] == "stopped"]
    assert len(stopped) == 1 and (directory / f"checkpoints/step_{stopped[0]['step']:08d}/manifest.json").exists()
    assert runs.finish(arguments, log=log) == 0, log.read_text()[-5000:]
    assert [row["step"] for row in runs.metrics(directory)] == list(range(25))
    got, expected = ([row["train/loss"] for row in runs.metrics(path)[1:]] for path in (directory, whole))
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # one process before the stop, two after


@pytest.mark.slow
def test_a_longer_run_on_other_processes_and_layouts_reads_the_samples_that_come_next(folder: Path) -> None:
    same = ["schedule=constant", "schedule.min_learning_rate=3e-3", "track=[jsonl]", "probe=off"]
    same += ["train.steps=null", "train.accept_new_length=true"]
    tokens = 8 * 128  # of a step
    parts = [
        (2, f"train.tokens={6 * tokens}"),
        (1, f"train.tokens={11 * tokens}"),
        (2, f"train.tokens={16 * tokens}", "parallel.tensor=2", "train.micro_batch_size=8"),
        (2, f"train.tokens={20 * tokens}", "parallel.pipeline=2"),
    ]
    for name, runs_of in (("at_once", [(2, f"train.tokens={20 * tokens}")]), ("in_parts", parts)):
        for processes, *more in runs_of:
            log = folder / f"{name}.log"
            code = runs.finish(runs.overrides(folder, name, *same, *more), processes=processes, log=log)
            assert code == 0, log.read_text()[-5000:]
    expected, got = (runs.metrics(folder / "runs" / name) for name in ("at_once", "in_parts"))
    assert [row["step"] for row in got] == list(range(21))
    for key in ("tokens", "data/tales/tokens", "data/lists/tokens"):
        assert [row.get(key) for row in got] == [row.get(key) for row in expected]
    # One other sample of eight would move a loss by 1e-3 or more; fp32 sums in another order move it by less than 1e-5.
    losses = ([row["train/loss"] for row in rows[1:]] for rows in (got, expected))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    longer = [event for event in runs.events(folder / "runs/in_parts") if event["kind"] == "length_changed"]
    assert [(event["step"], event["steps_before"], event["steps_now"]) for event in longer] == [
        (6, 6, 11),
        (11, 11, 16),
        (16, 16, 20),
    ]
    settings = [event for event in runs.events(folder / "runs/in_parts") if event["kind"] == "settings_changed"]
    assert "parallel.tensor: 1, now 2" in settings[1]["changes"]
    assert "accept_new_length: false" in (folder / "runs/in_parts/config.yaml").read_text()


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]


def test_a_run_directory_of_another_configuration_is_refused(folder: Path, whole: Path) -> None:
    log = folder / "other.log"
    code = runs.finish(runs.overrides(folder, "whole", "model.hidden_size=32", "run.seed=9"), processes=1, log=log)
    text = log.read_text()
    assert code != 0
    assert "model.hidden_size: 64, now 32" in text and "run.seed: 0, now 9" in text and "run.name" in text


def test_lm_eval_on_the_export_gives_the_same_answers_item_by_item(whole: Path) -> None:
    pytest.importorskip("transformers")
    import pyarrow.parquet as pq

    tasks = ["fineline_blimp", "fineline_lambada", "fineline_arc_easy"]
    limits = dict(zip(tasks, (40, 12, 15), strict=True))
    for step in (0, 10, 24):
        (file,) = (whole / "items").glob(f"*/step_{step:08d}.parquet")
        items = pq.read_table(file).to_pylist()
        recorded = {(r["metric"], r["task"]): r["value"] for r in runs.probes(whole) if r["step"] == step}
        for task, (answers, acc) in lm_eval_answers(whole / f"export/step_{step:08d}", limits).items():
            ours = [row for row in items if row["task"] == task]
            assert len(ours) == len(answers)
            for row in ours:
                log_likelihood, greedy = answers[row["item"], row["choice"]]
                assert abs(row["log_likelihood"] - log_likelihood) <= 2e-4
                assert row["is_greedy"] == greedy
            assert recorded["acc", task] == pytest.approx(acc, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["export", "published"])
def test_a_hugging_face_folder_starts_a_run_and_scores_the_same(form: str, folder: Path, whole: Path) -> None:
    log, export = folder / f"started_{form}.log", whole / "export/step_00000024"
    if form == "published":  # as Amber and OpenLLaMA: pickled shards
        export = publish_export(folder / "published", export, dtype=torch.float32)
    more = [f"checkpoint.start_from={export}", f"tokenizer.path={export / 'tokenizer.model'}", "train.steps=4"]
    code = runs.finish(runs.overrides(folder, f"started_{form}", *more), log=log)
    assert code == 0, log.read_text()[-5000:]
    directory = folder / "runs" / f"started_{form}"
    first = {(r["task"], r["metric"]): r["value"] for r in runs.probes(directory) if r["step"] == 0}
    last = {(r["task"], r["metric"]): r["value"] for r in runs.probes(whole) if r["step"] == 24}
    assert first == last, "the same weights score the same, bitwise"
    assert runs.metrics(directory)[-1]["train/loss"] < runs.metrics(whole)[1]["train/loss"]


@pytest.mark.slow
def test_published_weights_go_on_at_their_own_step(folder: Path, whole: Path) -> None:
    """Schedule, calendar, tokens and samples are those of the run that the weights were taken from."""
    log, export = folder / "went_on.log", whole / "export/step_00000010"
    more = [f"checkpoint.start_from={export}", "checkpoint.start_step=10", "checkpoint.keep=1"]
    code = runs.finish(runs.overrides(folder, "went_on", *more), log=log)
    assert code == 0, log.read_text()[-5000:]
    directory = folder / "runs" / "went_on"
    rows, expected = runs.metrics(directory), runs.metrics(whole)[10:]
    assert [row["step"] for row in rows] == list(range(10, 25))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
    rates = [[row["train/learning_rate"] for row in some[1:]] for some in (rows, expected)]
    assert rates[0] == rates[1]
    seen = [
        [(s.source, s.epoch, s.window) for step in (11, 24) for s in show_step(d, step=step)]
        for d in (directory, whole)
    ]
    assert seen[0] == seen[1]
    # The first step sees the same weights and samples; from the second on Adam's moments are others.
    assert rows[1]["train/loss"] == pytest.approx(expected[1]["train/loss"], rel=1e-6)
    assert sorted(path.name for path in (directory / "checkpoints").glob("step_*")) == [
        f"step_{step:08d}" for step in (10, 20, 24)
    ]
    first, then = (
        {(r["task"], r["metric"]): r["value"] for r in runs.probes(d) if r["step"] == 10} for d in (directory, whole)
    )
    assert first == then


def test_bad_input_is_explained_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "bad.log"
    arguments = runs.overrides(folder, "bad", "train.global_batch_size=7", "schedule.kind=cosin")
    code = runs.finish(arguments, processes=2, log=log)
    text = log.read_text()
    assert code != 0
    assert "train.global_batch_size=7" in text and "schedule.kind" in text and "cosine" in text
    assert not (folder / "runs" / "bad").exists()


@pytest.mark.slow
def test_an_unknown_task_stops_the_run_before_training(folder: Path) -> None:
    suite = folder / "unknown.yaml"
    suite.write_text("tasks:\n  - {task: fineline_blimpp, domain: linguistics}\n")
    log = folder / "unknown.log"
    code = runs.finish(runs.overrides(folder, "unknown", f"probe.suite={suite}"), processes=1, log=log)
    assert code != 0 and "fineline_blimp" in log.read_text()
    assert json.dumps({"kind": "finished"}) not in log.read_text()
