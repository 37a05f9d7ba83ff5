"""Samples of 2,048 tokens a second: our loader, megatron-core's GPTDataset, Hugging Face datasets.

Run from the repository's root on a quiet machine (about fifteen minutes; `--quick` about two):

    python -m tests.bench.loader --json tests/bench/results/loader.json

All read the same random tokens (`loading/data.py`), which the page cache holds, on one process that does nothing else;
those with DataLoader workers have these processes besides. Each measurement is a fresh process; contenders take turns
round by round, and figures are medians over rounds. Of each peer the best of its forms counts. `p99_wait_ms` is what a
training step waits for its 64 samples when it computes for 20 ms between them (asleep: as a GPU would).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.loading.contenders import CONTENDERS, STEP
from tests.bench.result import describe_machine, is_quiet, package_versions, ratio, spread, write_result

_ROOT = Path(__file__).parents[2]
_COMPUTE_SECONDS = 0.02
_PEERS = {"megatron": "megatron_", "hf_datasets": "hf_"}


def measure(name: str, folder: Path, *, seconds: float, steps: int) -> dict[str, float]:
    """One contender in this process: samples a second at full speed, then waits of paced steps, then memory."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    batches = CONTENDERS[name](folder)
    for _ in range(2 * STEP):  # workers start, files are opened, the first lookups are made
        next(batches)
    read, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        read += next(batches)
    rate = read / (time.perf_counter() - started)
    waits = []
    for _ in range(steps):
        time.sleep(_COMPUTE_SECONDS)
        begun, got = time.perf_counter(), 0
        while got < STEP:
            got += next(batches)
        waits.append(time.perf_counter() - begun)
    return {
        "samples_per_second": rate,
        "p99_wait_ms": float(np.quantile(waits, 0.99)) * 1e3,
        "megabytes": _own_megabytes(),
    }


def _own_megabytes() -> float:
    """Memory of this process and its workers that is not a file's, each page once where it is shared."""
    import psutil

    process = psutil.Process()
    total = 0
    for one in [process, *process.children(recursive=True)]:
        rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss_Anon:"))
    return total / 1024


def summarize(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The figures: ours, the best form of each peer, and ours over the better of them.

    Args:
        rounds: what `measure` found of each contender, a mapping a round.
    """
    contenders = {
        name: {
            "samples_per_second": spread([one["samples_per_second"] for one in found]),
            "p99_wait_ms": statistics.median(one["p99_wait_ms"] for one in found),
            "megabytes": statistics.median(one["megabytes"] for one in found),
        }
        for name, found in rounds.items()
    }

    def rate(name: str) -> float:
        return float(contenders[name]["samples_per_second"]["median"])

    best = {
        peer: max((name for name in contenders if name.startswith(prefix)), key=rate) for peer, prefix in _PEERS.items()
    }
    better = max(best.values(), key=rate)
    shuffled = max((n for n in contenders if n not in ("ours", "hf_batches_in_file_order")), key=rate)
    return {
        "samples_per_second": rate("ours"),
        "ratio_to_best_peer": ratio(rate("ours"), rate(better)),
        "best_peer": better,
        "ratio_to_best_shuffling_peer": ratio(rate("ours"), rate(shuffled)),
        "best_shuffling_peer": shuffled,
        **{f"ratio_to_{peer}": ratio(rate("ours"), rate(name)) for peer, name in best.items()},
        "p99_wait_ms": contenders["ours"]["p99_wait_ms"],
        "megabytes": contenders["ours"]["megabytes"],
        "contenders": contenders,
    }


def _contend(name: str, folder: Path, options: Mapping[str, float]) -> dict[str, float]:
    """One measurement in a process of its own."""
    asked = json.dumps({"name": name, "folder": str(folder), **options})
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.loader", "--measure", asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ended with code {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Runs and writes the result."""
    arguments = _arguments()
    if arguments.measure:
        asked = json.loads(arguments.measure)
        found = measure(asked["name"], Path(asked["folder"]), seconds=asked["seconds"], steps=asked["steps"])
        print(json.dumps(found), flush=True)
        os._exit(0)  # DataLoader's workers are daemons: nobody waits for them
    from tests.bench.loading.data import write

    machine = describe_machine(threads=1)
    is_quiet(machine)
    num_rounds, num_tokens = (1, 2**23) if arguments.quick else (arguments.rounds, 2**27)
    options = {"seconds": 1.0, "steps": 50} if arguments.quick else {"seconds": 4.0, "steps": 300}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, num_tokens=num_tokens)
        for number in range(num_rounds):
            for contender, found in rounds.items():
                found.append(_contend(contender, folder, options))
                shown = "  ".join(f"{key} {value:.5g}" for key, value in found[-1].items())
                print(f"round {number + 1}/{num_rounds}  {contender}: {shown}", flush=True)
    settings = {"rounds": num_rounds, "tokens": num_tokens, "samples_a_step": STEP, **options}
    figures = summarize(rounds) | {"settings": settings}
    write_result(
        arguments.json,
        name="loader",
        figures=figures,
        command=shlex.join(["python", "-m", "tests.bench.loader", *sys.argv[1:]]),
        machine=machine,
        versions=package_versions(["numpy", "torch", "megatron-core", "datasets", "pyarrow"]),
    )
    print(json.dumps({key: value for key, value in figures.items() if key not in ("contenders", "settings")}, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write", required="--measure" not in sys.argv)
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
