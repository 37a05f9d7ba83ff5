"""The shell scripts: which torchrun command they make of Slurm's or one's own variables, and that it runs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
LAUNCH = CHECKOUT / "launch"
CLUSTER_VARIABLES = ("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "NPROC_PER_NODE", "FINELINE_", "CUDA_VISIBLE_DEVICES")

PROBE = """
import os, signal, sys, time
from pathlib import Path
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
Path(os.environ["OUT"], "rank" + os.environ["RANK"]).write_text(" ".join(sys.argv[1:]))
# The launcher ends all ranks as soon as one has left: leave together.
while len(list(Path(os.environ["OUT"]).glob("rank*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.05)
while os.environ.get("WAIT") and not seen:
    time.sleep(0.05)
sys.exit(75 if seen else int(os.environ.get("CODE", "0")))
"""


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    """The environment of a bare machine: no cluster variables, `nvidia-smi` only if a test adds one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CLUSTER_VARIABLES)}
    path = f"{tmp_path / 'bin'}:{kept['PATH']}"
    return {
        **kept,
        "PATH": path,
        "PYTHONPATH": f"{tmp_path}:{CHECKOUT}",
        "FINELINE_PYTHON": sys.executable,
        **variables,
    }


def command(name: str, /, name_path: Path, text: str) -> None:
    """Puts a small program of that name first on the path."""
    name_path.mkdir(exist_ok=True)
    (name_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (name_path / name).chmod(0o755)


def dry_run(tmp_path: Path, *overrides: str, **variables: str) -> list[str]:
    done = subprocess.run(
        ["bash", LAUNCH / "torchrun.sh", *overrides],
        env=environment(tmp_path, FINELINE_DRY_RUN="1", **variables),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return shlex.split(done.stdout)


@pytest.fixture
def no_gpus(tmp_path: Path) -> Path:
    command("nvidia-smi", tmp_path / "bin", "exit 9")
    return tmp_path


def test_one_node_without_gpus_starts_one_process_and_passes_overrides_unchanged(no_gpus: Path) -> None:
    overrides = ["experiment=amber_7b", "track=[console,jsonl]", "data.sources.a.paths=[/a b/*.jsonl]"]
    launcher = ["-m", "pretrain.torchrun", "--standalone", "--nproc-per-node", "1"]
    assert dry_run(no_gpus, *overrides) == [sys.executable, *launcher, "-m", "pretrain", *overrides]


@pytest.mark.parametrize(
    ("variables", "expected"), [({}, "4"), ({"CUDA_VISIBLE_DEVICES": "0,3"}, "2"), ({"NPROC_PER_NODE": "3"}, "3")]
)
def test_there_is_one_process_per_visible_gpu_unless_told(
    variables: dict[str, str], expected: str, tmp_path: Path
) -> None:
    command("nvidia-smi", tmp_path / "bin", 'for i in 0 1 2 3; do echo "GPU $i: NVIDIA H100 (UUID: x)"; done')
    line = dry_run(tmp_path, **variables)
    assert line[line.index("--nproc-per-node") + 1] == expected


def test_slurm_variables_give_nodes_rank_first_host_and_a_port_of_the_job(no_gpus: Path) -> None:
    command("scontrol", no_gpus / "bin", '[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"')
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[07-08]"}
    line = dry_run(no_gpus, NPROC_PER_NODE="8", **slurm)
    rendezvous = line[line.index("--nnodes") : line.index("-m", 3)]
    assert rendezvous == [
        "--nnodes", "2", "--node-rank", "1", "--master-addr", "node07", "--master-port", "23456",
        "--nproc-per-node", "8",
    ]  # fmt: skip


def test_ones_own_variables_win_over_slurms(no_gpus: Path) -> None:
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NNODES": "3", "NODE_RANK": "2"}
    line = dry_run(no_gpus, **own, SLURM_NNODES="2", SLURM_NODEID="1", SLURM_JOB_NODELIST="n[1-2]")
    assert line[3:11] == [
        "--nnodes", "3", "--node-rank", "2", "--master-addr", "10.0.0.1", "--master-port", "29500",
    ]  # fmt: skip


def test_many_nodes_without_a_first_one_are_refused(no_gpus: Path) -> None:
    done = subprocess.run(
        ["bash", LAUNCH / "torchrun.sh"],
        env=environment(no_gpus, NNODES="2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "MASTER_ADDR" in done.stderr


@pytest.mark.parametrize("code", [0, 2, 75])
def test_two_processes_run_and_their_exit_code_is_kept(code: int, no_gpus: Path) -> None:
    (no_gpus / "launch_probe.py").write_text(PROBE)
    variables = {"FINELINE_MODULE": "launch_probe", "NPROC_PER_NODE": "2", "OUT": str(no_gpus), "CODE": str(code)}
    done = subprocess.run(
        ["bash", LAUNCH / "torchrun.sh", "a=1", "b=[2,3]"],
        env=environment(no_gpus, **variables),
        cwd=no_gpus,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert (no_gpus / "rank0").read_text() == "a=1 b=[2,3]"
    assert (no_gpus / "rank1").read_text() == "a=1 b=[2,3]"


def test_usr1_to_the_whole_step_reaches_the_trainers_and_not_their_launcher(no_gpus: Path) -> None:
    """As Slurm signals a step: every process gets USR1; the trainers save and leave with 75, and so does the step."""
    (no_gpus / "launch_probe.py").write_text(PROBE)
    variables = {"FINELINE_MODULE": "launch_probe", "NPROC_PER_NODE": "2", "OUT": str(no_gpus), "WAIT": "1"}
    step = subprocess.Popen(
        ["bash", LAUNCH / "torchrun.sh"],
        env=environment(no_gpus, **variables),
        stderr=subprocess.PIPE,
        process_group=0,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not ((no_gpus / "rank0").exists() and (no_gpus / "rank1").exists()):
        assert time.monotonic() < deadline and step.poll() is None, "the processes did not start"
        time.sleep(0.05)
    trainers = subprocess.run(["pgrep", "-P", str(step.pid)], capture_output=True, text=True, check=True).stdout.split()
    for pid in [step.pid, *map(int, trainers)]:
        os.kill(pid, signal.SIGUSR1)
    _, errors = step.communicate(timeout=300)
    assert step.returncode == 75, errors


def test_the_demo_starts_two_processes_without_gpus_and_one_per_gpu_with_them(no_gpus: Path) -> None:
    def processes() -> str:
        done = subprocess.run(
            ["bash", LAUNCH / "demo.sh", "train.steps=3"],
            env=environment(no_gpus, FINELINE_DRY_RUN="1", FINELINE_VENV=str(no_gpus / "venv")),
            capture_output=True,
            text=True,
            check=True,
        )
        line = shlex.split(done.stdout)
        assert line[-3:] == ["pretrain", "experiment=demo", "train.steps=3"]
        return line[line.index("--nproc-per-node") + 1]

    pretend_installed(no_gpus / "venv")
    assert processes() == "2"
    command("nvidia-smi", no_gpus / "bin", 'for i in 0 1 2; do echo "GPU $i: x"; done')
    assert processes() == "2"  # the largest power of two in three, so that the batch divides
    command("nvidia-smi", no_gpus / "bin", 'echo "GPU 0: x"')
    assert processes() == "1"


def pretend_installed(venv: Path) -> None:
    """A virtual environment whose pip only writes down that it was called."""
    (venv / "bin").mkdir(parents=True)
    command("python", venv / "bin", f'[ "$*" = "-m pip --version" ] || echo "$*" >> {venv}/calls')


def install(venv: Path, kind: str) -> list[str]:
    subprocess.run(
        ["bash", "-euc", f"source {LAUNCH}/environment.sh; install_fineline {kind}"],
        env={**os.environ, "FINELINE_VENV": str(venv)},
        check=True,
        capture_output=True,
    )
    calls = venv / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


def test_installing_twice_installs_once_and_the_tests_installation_serves_the_demo(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    pretend_installed(venv)
    assert len(install(venv, "test")) == 1
    assert "constraints.txt" in install(venv, "test")[0]
    assert len(install(venv, "run")) == 1


def test_an_interrupted_installation_is_done_again(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    pretend_installed(venv)
    command("python", venv / "bin", '[ "$*" = "-m pip --version" ]')
    with pytest.raises(subprocess.CalledProcessError):
        install(venv, "run")
    command("python", venv / "bin", f'[ "$*" = "-m pip --version" ] || echo "$*" >> {venv}/calls')
    assert len(install(venv, "run")) == 1


def test_two_installations_at_once_wait_for_each_other(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    pretend_installed(venv)
    command("python", venv / "bin", f'[ "$*" = "-m pip --version" ] || {{ sleep 1; echo "$*" >> {venv}/calls; }}')
    script = f"source {LAUNCH}/environment.sh; install_fineline run"
    both = [
        subprocess.Popen(
            ["bash", "-euc", script], env={**os.environ, "FINELINE_VENV": str(venv)}, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [process.wait(30) for process in both] == [0, 0]
    assert len((venv / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "script", ["test.sh", "demo.sh", "torchrun.sh", "environment.sh", "slurm.sbatch", "../.ci/run"]
)
def test_every_script_is_valid_bash(script: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


def test_the_slurm_template_requeues_forwards_the_signal_and_starts_torchrun() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    for needed in ("--requeue", "--signal=B:USR1@300", "--open-mode=append", "scancel --signal=USR1", "torchrun.sh"):
        assert needed in text
