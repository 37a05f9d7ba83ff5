"""Starts real runs of the product as a user does: torchrun, two gloo processes, a small text of its own."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pretrain.checkpoint.reader import CheckpointReader
from tests.support.ranks import environment

WORDS = re.findall(
    r"\w+",
    "the cat dog bird sees hears likes a small red old house river stone and runs walks home slowly quickly because "
    "rain snow falls on grey green fields every day while children play near trees of oak and elm",
)


def write_text(folder: Path) -> None:
    """Two sources of made-up sentences, some documents marked as validation, and a `data=own` that names them."""
    rng = random.Random(5)
    for name, count in (("tales", 400), ("lists", 200)):
        lines = []
        for number in range(count):
            words = [rng.choice(WORDS) for _ in range(rng.randint(40, 120))]
            text = " ".join(words) if name == "tales" else "\n".join(f"{i}. {w}" for i, w in enumerate(words))
            split = "validation" if number % 10 == 0 else "train"
            lines.append(json.dumps({"text": text, "meta": {"split": split}}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "conf/data").mkdir(parents=True)
    (folder / "conf/data/own.yaml").write_text(
        "sources:\n"
        f"  tales: {{paths: ['{folder / 'tales.jsonl'}'], weight: 3}}\n"
        f"  lists: {{paths: ['{folder / 'lists.jsonl'}'], weight: 1}}\n"
    )


def write_suite(folder: Path) -> Path:
    """A suite of three bundled tasks, a few items of each."""
    path = folder / "small.yaml"
    path.write_text(
        "tasks:\n"
        "  - {task: fineline_blimp, domain: linguistics, limit: 40}\n"
        "  - {task: fineline_lambada, domain: language, limit: 12}\n"
        "  - {task: fineline_arc_easy, domain: knowledge, limit: 15}\n"
    )
    return path


def overrides(folder: Path, name: str, *more: str) -> list[str]:
    """A run of 24 steps that trains in a few seconds; everything in `folder`."""
    return [
        f"run.dir={folder / 'runs'}",
        f"run.name={name}",
        f"--config-dir={folder / 'conf'}",
        "data=own",
        "data.validation_tokens=1500",
        "tokenizer.vocab_size=400",
        "model.num_layers=2",
        "model.hidden_size=64",
        "model.ffn_hidden_size=160",
        "model.num_attention_heads=4",
        "model.num_query_groups=2",
        "optimizer=adamw",
        "schedule.learning_rate=3e-3",
        "schedule.warmup=4 steps",
        "precision=fp32",
        "train.steps=24",
        "train.sequence_length=128",
        "train.global_batch_size=8",
        "train.micro_batch_size=2",
        "checkpoint.early=[0,2,5]",
        "checkpoint.every=10 steps",
        f"probe.suite={write_suite(folder)}",
        "track=[console,jsonl,wandb]",
        *more,
    ]


def command(arguments: Sequence[str], *, processes: int = 2) -> list[str]:
    """The command line of a run."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, "-m", "pretrain", *arguments]


def start(arguments: Sequence[str], *, processes: int = 2, log: Path) -> subprocess.Popen[bytes]:
    """Starts a run in a process group of its own, so that all of it can be killed at once."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command(arguments, processes=processes),
            env=environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            cwd=log.parent,
        )


def finish(arguments: Sequence[str], *, processes: int = 2, log: Path, seconds: float = 300) -> int:
    """Runs to the end; returns the exit code."""
    process = start(arguments, processes=processes, log=log)
    try:
        return process.wait(seconds)
    except BaseException:
        kill(process)
        raise


def kill(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """Ends the launcher and every rank it started, at once, and waits until all have gone."""
    members = tell_all(process, number)
    process.wait()
    psutil.wait_procs(members, timeout=60)


def tell_all(process: subprocess.Popen[bytes], number: signal.Signals) -> list[psutil.Process]:
    """Sends a signal to a launcher and its ranks, which torchrun gives sessions of their own; returns the ranks."""
    launcher = psutil.Process(process.pid)
    members = launcher.children(recursive=True)
    for member in [*members, launcher]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(number)
    return members


def wait_until_step(directory: Path, step: int, process: subprocess.Popen[bytes], *, seconds: float = 120) -> None:
    """Polls the record until a step is in it, or the run has ended."""
    deadline = time.monotonic() + seconds
    while last_step(directory) < step and process.poll() is None:
        assert time.monotonic() < deadline, f"step {step} did not come in time"
        time.sleep(0.01)


def metrics(directory: Path) -> list[dict[str, Any]]:
    """Whole rows of metrics.jsonl."""
    return _rows(directory / "metrics.jsonl")


def events(directory: Path) -> list[dict[str, Any]]:
    """Whole rows of events.jsonl."""
    return _rows(directory / "events.jsonl")


def probes(directory: Path) -> list[dict[str, Any]]:
    """Whole rows of probes.jsonl."""
    return _rows(directory / "probes.jsonl")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def last_step(directory: Path) -> int:
    """Newest step in the record, -1 before the first."""
    return max((row["step"] for row in metrics(directory)), default=-1)


def state_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every fp32 weight and moment of a checkpoint."""
    reader = CheckpointReader(checkpoint)
    return {
        f"{kind}:{key}": reader.tensor(key, kind).numpy()
        for key in reader.manifest.tensors
        for kind in reader.manifest.kinds
    }


def assert_same_state(expected: Path, got: Path) -> None:
    """Bitwise equality of two checkpoints."""
    first, second = state_of(expected), state_of(got)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert np.array_equal(values, second[name]), f"{name} differs"
