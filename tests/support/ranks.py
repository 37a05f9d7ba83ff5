"""Runs a function on N real gloo processes and gives back what each returned.

A rank is a fresh interpreter, so nothing of one test reaches another. When one rank fails, the others are ended
(by pid: they were started here) and its error output is the test's failure message.
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def run_ranks(target: str, world_size: int, payload: Any = None, *, timeout_seconds: float = 600.0) -> list[Any]:
    """Calls `module:function(payload)` on every rank of a job.

    Args:
        target: `tests.parity.workers:train`, importable from the repository's root.
        world_size: processes.
        payload: anything that pickles.
        timeout_seconds: for the whole job.

    Returns:
        The results in the order of ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        (job / "payload").write_bytes(pickle.dumps(payload))
        port = free_port()
        processes = [_start(target, job, rank, world_size, port) for rank in range(world_size)]
        deadline = time.monotonic() + timeout_seconds
        try:
            _wait(processes, job, deadline)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [pickle.loads((job / f"result{rank}").read_bytes()) for rank in range(world_size)]


def environment(rank: int = 0, world_size: int = 1, port: int | None = None) -> dict[str, str]:
    """Variables of one process of a job, as torchrun sets them; without a port, of no job."""
    variables = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT), "WANDB_MODE": "offline"}
    if port is not None:
        variables |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return variables


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(target: str, job: Path, rank: int, world_size: int, port: int) -> subprocess.Popen[bytes]:
    log = (job / f"log{rank}").open("wb")
    command = [sys.executable, "-m", "tests.support.ranks", target, str(job), str(rank)]
    return subprocess.Popen(command, cwd=_ROOT, env=environment(rank, world_size, port), stdout=log, stderr=log)


def _wait(processes: list[subprocess.Popen[bytes]], job: Path, deadline: float) -> None:
    while any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll()]
        if failed:
            break
        if time.monotonic() > deadline:
            logs = "\n".join((job / f"log{rank}").read_text(errors="replace")[-3000:] for rank in range(len(processes)))
            raise AssertionError(f"the job did not end in time:\n{logs}")
        time.sleep(0.05)
    for rank, process in enumerate(processes):
        if process.poll():
            raise AssertionError(f"rank {rank} failed:\n{(job / f'log{rank}').read_text(errors='replace')[-6000:]}")


def _main(target: str, job: Path, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    module, function = target.split(":")
    result = getattr(importlib.import_module(module), function)(pickle.loads((job / "payload").read_bytes()))
    (job / f"result{rank}").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
