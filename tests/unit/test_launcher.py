"""What a launcher says in the environment, and what is said where it says half of it or a port is taken."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import torchrun
from pretrain.engine.job import Job
from pretrain.errors import EngineError
from pretrain.launcher import Launched, network_problem, read_launched
from tests.support.ranks import environment

WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_a_launchers_variables_are_read_and_a_process_without_them_is_alone() -> None:
    assert read_launched(WHOLE) == Launched(1, 4, 1, "node0:29500")
    for variables in ({}, {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}, {"RANK": "", "WORLD_SIZE": " "}):
        assert read_launched(variables) == Launched(0, 1, 0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "RANK=1, WORLD_SIZE=4, LOCAL_RANK=1 .* no MASTER_ADDR, MASTER_PORT"),
        ({"RANK": ""}, "WORLD_SIZE=4, LOCAL_RANK=1 in the environment, but no RANK. To run one process, unset RANK"),
        ({"WORLD_SIZE": ""}, "but no WORLD_SIZE"),
        ({"RANK": "4"}, "RANK=4 must be below WORLD_SIZE=4"),
        ({"RANK": "one"}, "RANK=one in the environment must be a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 in the environment must be a whole number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 .* from 1 to 65535"),
    ],
)
def test_half_of_a_launchers_variables_and_values_that_cannot_be_are_named(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        read_launched({**WHOLE, **changes})


@pytest.mark.parametrize("module", ["pretrain", "probes"])
def test_a_rank_left_over_from_another_job_ends_a_command_with_a_message(module: str, tmp_path: Path) -> None:
    words = ["experiment=demo"] if module == "pretrain" else ["score", str(tmp_path)]
    command = [sys.executable, "-m", module, *words]
    variables = {**environment(), "RANK": "3", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "RANK=3 in the environment, but no WORLD_SIZE, MASTER_ADDR, MASTER_PORT" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine that another program listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def test_a_port_in_use_is_named_by_the_process_that_needs_it(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(taken))):
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match=rf"Port {taken}, .* is in use .*Set MASTER_PORT"):
        Job(timeout_minutes=1)


def test_a_port_in_use_is_named_by_the_launcher(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nnodes", "1", "--master-addr", "127.0.0.1", "--master-port", str(taken), "-m", "this"]
    assert torchrun.main(options) == 1
    assert f"Port {taken}, at which the processes of this job meet, is in use" in capsys.readouterr().err


def test_processes_that_cannot_meet_are_told_where() -> None:
    error = RuntimeError(
        "The client socket has timed out after 5000ms while trying to connect to (node0, 1).\nframe #1"
    )
    said = network_problem(error, "node0:1")
    assert "could not meet at node0:1 (MASTER_ADDR, MASTER_PORT): The client socket" in said and "frame" not in said
