"""Sweeps: which jobs, under which names, with which command line, and what their failures do."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from pretrain import sweep
from pretrain.errors import ConfigError


def test_every_combination_becomes_a_job_named_after_what_varies() -> None:
    jobs = sweep.plan(["experiment=demo", "run.seed=0,1", "train.micro_batch_size=choice(2,4)"])
    assert [job.name for job in jobs] == [
        "demo-run.seed=0-train.micro_batch_size=2",
        "demo-run.seed=0-train.micro_batch_size=4",
        "demo-run.seed=1-train.micro_batch_size=2",
        "demo-run.seed=1-train.micro_batch_size=4",
    ]
    assert jobs[1].overrides == (
        "experiment=demo",
        "run.seed=0",
        "train.micro_batch_size=4",
        "run.name='demo-run.seed=0-train.micro_batch_size=4'",
    )


def test_a_swept_run_name_is_the_name_and_a_given_one_is_the_stem() -> None:
    names = [job.name for job in sweep.plan(["experiment=demo", "run.name=a,b"])]
    assert names == ["a", "b"]
    (only,) = sweep.plan(["experiment=demo", "run.name=stem"])
    assert only.name == "stem"
    assert [job.name for job in sweep.plan(["experiment=demo", "run.name=stem", "run.seed=1,2"])] == [
        "stem-run.seed=1",
        "stem-run.seed=2",
    ]


def test_several_processes_are_started_by_torchrun_and_one_is_not() -> None:
    one, two = sweep.plan(["experiment=demo", "cluster.processes_per_node=1,2"])
    assert sweep.command(one)[:3] == [sys.executable, "-m", "pretrain"]
    assert sweep.command(two, config_dir="mine")[1:9] == [
        "-m", "pretrain.torchrun", "--standalone", "--nproc-per-node=2", "-m", "pretrain", "--config-dir", "mine",
    ]  # fmt: skip


def test_all_jobs_are_judged_before_the_first_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a job was started"))
    with pytest.raises(ConfigError) as caught:
        sweep.run(["experiment=demo", "train.steps=100,10,many"], environment={})
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="this machine only"):
        sweep.run(["experiment=demo", "cluster.nodes=2"], environment={})


@pytest.mark.parametrize("world_size", ["2", "abc"])
def test_a_sweep_inside_torchrun_is_refused_with_the_reason(world_size: str) -> None:
    with pytest.raises(ConfigError, match=f"WORLD_SIZE={world_size} .*every process would run the whole sweep"):
        sweep.run(["experiment=demo"], environment={"WORLD_SIZE": world_size})


@pytest.mark.parametrize(("codes", "expected", "started"), [([0, 0], 0, 2), ([1, 0], 1, 2), ([75, 0], 75, 1)])
def test_a_failed_job_does_not_stop_the_others_but_a_stopped_one_does(
    codes: list[int], expected: int, started: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def fake(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=codes[len(commands) - 1])

    monkeypatch.setattr(subprocess, "run", fake)
    assert sweep.run(["experiment=demo", "run.seed=0,1"], environment={}) == expected
    assert len(commands) == started
    if expected == 1:
        assert "1 of 2 jobs failed: demo-run.seed=0 (exit code 1)" in capsys.readouterr().err


def test_two_jobs_never_share_a_name() -> None:
    with pytest.raises(ConfigError, match="name of 2 jobs"):
        sweep.plan(["experiment=demo", "track.wandb.tags=[a b],[a_b]"])
