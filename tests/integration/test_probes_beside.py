"""Scoring beside training: `watch`, `score` and inline probing say the same of the same checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import runs
from tests.support.published import publish_export
from tests.support.ranks import environment
from tests.support.wandb_file import history

STEPS = (0, 2, 5, 10, 20, 24)
PACKING = "probe.tokens_per_row=256"  # 33 rows, so that a step has several slices
OF_THE_RUN = ("run", "step", "tokens", "flops", "config_hash")


@pytest.fixture(scope="module")
def inline(folder: Path) -> Path:
    """A run of two data-parallel processes that was probed inline."""
    log = folder / "inline.log"
    code = runs.finish(runs.overrides(folder, "inline", "checkpoint.export=last", PACKING), log=log)
    assert code == 0, log.read_text()[-5000:]
    return folder / "runs" / "inline"


def unscored(inline: Path, name: str) -> Path:
    """A copy of the run, its checkpoints included, without any score."""
    copy = inline.with_name(name)
    shutil.copytree(inline, copy)
    for left in ("items", "plans"):
        shutil.rmtree(copy / left)
    (copy / "probes.jsonl").unlink()
    return copy


def start(arguments: Sequence[object], *, processes: int, log: Path) -> subprocess.Popen[bytes]:
    """`python -m probes …` as a user starts it, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "probes", *map(str, arguments)]
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, env=environment(), stdout=stream, stderr=stream, start_new_session=True, cwd=log.parent
        )


def finish(arguments: Sequence[object], *, processes: int = 1, log: Path, seconds: float = 400) -> str:
    """Runs to the end; returns what it printed."""
    process = start(arguments, processes=processes, log=log)
    try:
        assert process.wait(seconds) == 0, log.read_text()[-5000:]
    except BaseException:
        if process.poll() is None:
            runs.tell_all(process, signal.SIGKILL)
        raise
    return log.read_text()


def scores(path: Path, *without: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of a record by what names them, without what a clock measured."""
    rows = runs.probes(path)
    named = {
        (row["step"] if "step" not in without else None, row["domain"], row["task"], row["metric"]): {
            key: value for key, value in row.items() if key not in ("seconds", *without)
        }
        for row in rows
    }
    assert len(named) == len(rows) > 0
    return named


def test_watch_records_what_inline_probing_does_bit_by_bit(inline: Path, folder: Path) -> None:
    run = unscored(inline, "watched")
    finish(["watch", run, "slice_rows=4", "poll_seconds=1"], processes=2, log=folder / "watched.log")
    assert scores(run) == scores(inline)
    assert sorted({row["step"] for row in runs.probes(run)}) == list(STEPS)
    assert not (run / "probes.partial").exists()
    assert (run / "events.jsonl").read_bytes() == (inline / "events.jsonl").read_bytes(), (
        "training's files are read only"
    )
    described = [
        {key: value for key, value in row.items() if key not in ("time", "step", "seconds")}
        for name in ("events.jsonl", "watch.jsonl")
        for row in map(json.loads, (run / name).read_text().splitlines())
        if row["kind"] == "probe_plan"
    ]
    assert len(described) == 2 and described[0] == described[1], "training and the watcher say the same of a plan"
    plans = {path.name for path in (run / "plans").iterdir()}
    assert len(list((run / "items" / plans.pop()).iterdir())) == len(STEPS) and not plans
    tokens = {row["step"]: row["tokens"] for row in runs.probes(run)}
    shown = [row["probe_tokens"] for row in wandb_rows(run) if "probe_tokens" in row]
    assert shown == 2 * [tokens[step] for step in STEPS], "training's own, copied, and the watcher's"


def test_score_says_of_a_checkpoint_and_of_its_export_what_inline_probing_did(inline: Path, folder: Path) -> None:
    files = {path: path.read_bytes() for path in inline.glob("*") if path.is_file()}
    out = folder / "of_checkpoint"
    printed = finish(["score", inline, f"out={out}"], processes=2, log=folder / "checkpoint.log")
    expected = {key: row for key, row in scores(inline).items() if key[0] == 24}
    assert scores(out) == expected
    assert "fineline_arc_easy" in printed and "±" in printed
    of_export = folder / "of_export"
    suite = inline.parent.parent / "small.yaml"
    arguments = ["score", inline / "export/step_00000024", f"suite={suite}", "tokens_per_row=256", f"out={of_export}"]
    finish(arguments, processes=2, log=folder / "export.log")
    assert scores(of_export, *OF_THE_RUN) == scores(out, *OF_THE_RUN)
    assert {path: path.read_bytes() for path in inline.glob("*") if path.is_file()} == files, "nothing is written"


@pytest.mark.slow
def test_score_says_of_a_folder_as_others_publish_it_what_inline_probing_did(inline: Path, folder: Path) -> None:
    export, out = inline / "export/step_00000024", folder / "of_published"
    published = publish_export(folder / "published", export, dtype=torch.float32, length_key="max_sequence_length")
    arguments = ["score", published, f"suite={inline.parent.parent / 'small.yaml'}", "tokens_per_row=256"]
    finish([*arguments, f"out={out}"], processes=2, log=folder / "published.log")
    last = {key: row for key, row in scores(inline).items() if key[0] == 24}
    expected = {(None, *key[1:]): {n: row[n] for n in row.keys() - set(OF_THE_RUN)} for key, row in last.items()}
    assert scores(out, *OF_THE_RUN) == expected


@pytest.mark.slow
def test_another_layout_says_the_same_up_to_rounding(inline: Path, folder: Path) -> None:
    out = folder / "tensor"
    arguments = ["score", inline / "checkpoints/step_00000010", "parallel.tensor=2", "parallel.sequence=true"]
    finish([*arguments, f"out={out}"], processes=2, log=folder / "tensor.log")
    expected, got = scores(inline), scores(out)
    for key, row in got.items():
        assert row["value"] == pytest.approx(expected[key]["value"], rel=1e-6, abs=1e-6), key  # fp32 sums of two ranks
    assert len(got) == len(expected) / len(STEPS)


@pytest.mark.slow
def test_scores_of_a_watcher_reach_the_views_of_the_run_it_watches(inline: Path, folder: Path) -> None:
    log, run = folder / "beside.log", folder / "runs" / "beside"
    arguments = runs.overrides(folder, "beside", "probe=beside", PACKING, "track=[console,jsonl,wandb,tensorboard]")
    training = runs.start(arguments, log=log)
    try:
        deadline = time.monotonic() + 200
        while not (run / "config.yaml").exists() and time.monotonic() < deadline and training.poll() is None:
            time.sleep(0.05)
        finish(["watch", run, "poll_seconds=1"], log=folder / "beside_watch.log")
        assert training.wait(60) == 0, log.read_text()[-5000:]
    finally:
        if training.poll() is None:
            runs.tell_all(training, signal.SIGKILL)
    expected, got = scores(inline, "run", "config_hash"), scores(run, "run", "config_hash")
    assert got.keys() == expected.keys()
    for key, row in got.items():
        same = {name: value for name, value in row.items() if name not in ("value", "stderr")}
        assert same == {name: expected[key][name] for name in same}
        assert row["value"] == pytest.approx(expected[key]["value"], rel=1e-5, abs=1e-6), key  # one process, not two
    rows = wandb_rows(run)
    tokens = sorted({row["tokens"] for row in runs.probes(run)})
    assert sorted(row["probe_tokens"] for row in rows if "probe_tokens" in row) == tokens
    assert [row["tokens"] for row in rows if "train/loss" in row] == [1024 * step for step in range(1, 25)]
    kinds = [row["kind"] for row in map(json.loads, (run / "watch.jsonl").read_text().splitlines())]
    assert kinds.count("scored_beside") == kinds.count("shown") == len(STEPS)


def wandb_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of all segments of the one W&B run, in the order they were begun."""
    segments = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.parent.name)
    assert len({path.parent.name.rsplit("-", 1)[1] for path in segments}) == 1
    return [row for path in segments for row in history(path)]


@pytest.mark.slow
def test_a_watcher_killed_in_the_middle_of_a_suite_goes_on_where_it_was(inline: Path, folder: Path) -> None:
    run, log = unscored(inline, "killed"), folder / "killed.log"
    arguments = ["watch", run, "slice_rows=2", "poll_seconds=1"]
    for number in range(2):
        watcher = start(arguments, processes=2, log=log)
        deadline = time.monotonic() + 200
        while len(list(run.glob("probes.partial/*/*/slice_*.npz"))) < 3 + number and watcher.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.005)
        assert watcher.poll() is None, log.read_text()[-5000:]
        runs.tell_all(watcher, signal.SIGSTOP)
        if number == 0:  # it holds the run still
            second = folder / "second.log"
            assert start(["watch", run, "until=now"], processes=1, log=second).wait(200) == 1
            assert "is being watched by process" in second.read_text()
        runs.tell_all(watcher, signal.SIGKILL)
        watcher.wait()
        assert list(run.glob("probes.partial/*/*/slice_*.npz"))
    shutil.rmtree(run / "checkpoints/step_00000020")
    shard = next((run / "checkpoints/step_00000005").glob("param*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    printed = finish(arguments, processes=2, log=log)
    expected = {key: row for key, row in scores(inline).items() if key[0] not in (5, 20)}
    assert scores(run) == expected
    assert "step 5  passed over" in printed and "no checkpoint is left of the steps 20" in printed
    assert not (run / "probes.partial").exists()
    before = (run / "probes.jsonl").read_bytes()
    finish(arguments, processes=2, log=log)
    assert (run / "probes.jsonl").read_bytes() == before
