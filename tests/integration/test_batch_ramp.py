"""A whole run whose batches grow, with wsd and z-loss: what its record says, and that a resume changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import runs

RAMP = "train.batch_ramp=[{until: 3 steps, global_batch_size: 2}, {until: 2k tokens, global_batch_size: 4}]"
MORE = [
    RAMP,
    "train.micro_batch_size=1",
    "train.steps=12",
    "schedule=wsd",
    "schedule.learning_rate=3e-3",
    "schedule.warmup=4 steps",
    "schedule.decay_length=25%",
    "optimizer.z_loss=1e-3",
    "checkpoint.early=[0]",
    "checkpoint.every=1024 tokens",
    "probe=off",
    "track=[jsonl]",
]


def timeless(row: dict) -> dict:
    return {name: value for name, value in row.items() if not name.startswith(("perf/", "time/"))}


@pytest.mark.slow
def test_a_run_with_growing_batches_resumes_bitwise_within_its_ramp(tmp_path: Path) -> None:
    runs.write_text(tmp_path)
    arguments, log = runs.overrides(tmp_path, "ramp", *MORE), tmp_path / "log"
    assert runs.finish(arguments, log=log) == 0, log.read_text()[-3000:]
    directory = tmp_path / "runs/ramp"
    rows = [timeless(row) for row in runs.metrics(directory)]
    steps = {row["step"]: row for row in rows if "train/loss" in row}
    sizes = [2] * 3 + [4] * 3 + [8] * 6  # 2,304 tokens after six steps are the first that reach 2,000
    assert [steps[step]["tokens"] for step in range(1, 13)] == [128 * sum(sizes[:step]) for step in range(1, 13)]
    assert steps[6]["train/learning_rate"] == 3e-3 > steps[12]["train/learning_rate"]
    # An untrained model is nearly uniform over its vocabulary of 400: log Z is near its logarithm.
    assert steps[1]["train/z_loss"] == pytest.approx(1e-3 * 5.99**2, rel=0.05)

    saved = sorted(path for path in (directory / "checkpoints").glob("step_*"))
    assert [int(path.name[5:]) for path in saved] == [0, 4, 6, 7, 8, 9, 10, 11, 12]  # each reaches a multiple of 1,024
    shutil.copytree(saved[-1], tmp_path / "expected")
    for path in saved[2:]:
        shutil.rmtree(path)
    assert runs.finish(arguments, log=log) == 0, log.read_text()[-3000:]
    assert next(event for event in runs.events(directory) if event["kind"] == "resume")["step"] == 4
    assert [timeless(row) for row in runs.metrics(directory)] == rows
    runs.assert_same_state(tmp_path / "expected", saved[-1])
