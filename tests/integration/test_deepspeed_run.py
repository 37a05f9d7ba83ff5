"""Whole runs under DeepSpeed: by both launchers, across engines, and with a rank that dies while it saves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrain.checkpoint.reader import newest_valid
from tests.support import runs
from tests.support.ranks import environment, free_port

LAST = "checkpoints/step_00000024"


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run at stage 3, started by torchrun."""
    log = folder / "whole.log"
    code = runs.finish(runs.overrides(folder, "whole", "engine=deepspeed_zero3"), log=log)
    assert code == 0, log.read_text()[-5000:]
    return folder / "runs" / "whole"


def test_the_run_keeps_what_deepspeed_was_given_and_probes_every_save(whole: Path) -> None:
    given = json.loads((whole / "deepspeed.json").read_text())
    assert given["zero_optimization"]["stage"] == 3 and given["gradient_accumulation_steps"] == 2
    assert {row["step"] for row in runs.probes(whole)} == {0, 2, 5, 10, 20, 24}
    (start,) = (event for event in runs.events(whole) if event["kind"] == "start")
    assert start["engine"] == "deepspeed" and start["optimizer"] == "torch.optim.adamw.AdamW"


@pytest.mark.slow
def test_the_deepspeed_launcher_gives_the_same_run(folder: Path, whole: Path) -> None:
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    arguments = runs.overrides(folder, "launched", "engine=deepspeed_zero3")
    done = subprocess.run(
        [sys.executable, *launcher, "--module", "pretrain", *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    runs.assert_same_state(whole / LAST, folder / "runs" / "launched" / LAST)


@pytest.mark.slow  # weights and moments under the other engine: tests/parity/test_checkpoint_engines.py
def test_a_run_begun_under_megatron_goes_on_under_deepspeed(folder: Path, whole: Path) -> None:
    directory, log = folder / "runs" / "moved", folder / "moved.log"
    process = runs.start(runs.overrides(folder, "moved"), log=log)
    runs.wait_until_step(directory, 11, process)
    runs.tell_all(process, signal.SIGTERM)
    process.wait(120)
    assert runs.finish(runs.overrides(folder, "moved", "engine=deepspeed_zero2"), log=log) == 0, log.read_text()[-5000:]
    engines = [event["engine"] for event in runs.events(directory) if event["kind"] in ("start", "resume")]
    assert engines == ["megatron", "deepspeed"]
    losses = [[row["train/loss"] for row in runs.metrics(path)[1:]] for path in (directory, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-5)  # 24 steps of fp32 sums in another order
    start = [[row for row in runs.probes(path) if row["step"] == 0] for path in (directory, whole)]
    for got, expected in zip(*start, strict=True):
        assert (got["task"], got["metric"]) == (expected["task"], expected["metric"])
        assert got["value"] == pytest.approx(expected["value"], rel=1e-6, abs=1e-12)  # the same weights


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4])
def test_a_rank_that_dies_while_it_saves_leaves_only_checkpoints_that_load(
    folder: Path, whole: Path, number: int
) -> None:
    name, log = f"died{number}", folder / f"died{number}.log"
    directory, arguments = folder / "runs" / name, runs.overrides(folder, name, "engine=deepspeed_zero3")
    torn = directory / "checkpoints" / "step_00000005.writing"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    died = subprocess.run(
        [*launcher, "-m", "tests.support.dying_rank", str(torn), str(number), *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert died.returncode != 0 and torn.is_dir(), died.stderr[-5000:]
    chosen = newest_valid(directory / "checkpoints")
    assert chosen is not None and chosen.name == "step_00000002"
    assert runs.finish(arguments, log=log) == 0, log.read_text()[-5000:]
    runs.assert_same_state(whole / LAST, directory / LAST)
