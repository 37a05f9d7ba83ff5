"""Whether hundreds of runs load and are compared in reasonable time and memory.

Writes 200 synthetic run directories of 150 checkpoints × 100 tasks, as training would leave them, and has one process
load them and write the comparison page. What that process took is measured from outside; writing the runs is not in it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

RUNS, CHECKPOINTS, TASKS = 200, 150, 100
QUICK_RUNS = 20
METRIC_ROWS = 1500
SECONDS_ALLOWED, MEGABYTES_ALLOWED = 30.0, 2048.0
TOKENS_PER_STEP = 2_097_152
_SIZES = (70e6, 160e6, 410e6, 1e9, 1.4e9, 2.8e9, 6.9e9, 12e9)
_LABELS = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_DOMAINS = ("commonsense", "knowledge", "language", "reasoning", "mathematics", "code", "examination", "understanding")

_MEASURED = """\
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
from probes.dynamics.load import load_curves
table = load_curves(sorted(Path(sys.argv[1]).iterdir()))
loaded = time.perf_counter()
from probes.report.compare_page import write_comparison
write_comparison(table, Path(sys.argv[2]))
done = time.perf_counter()
used = resource.getrusage(resource.RUSAGE_SELF)
rows = sum(len(curve) for curve in table)
seconds = {"load_seconds": loaded - began, "report_seconds": done - loaded}
seconds["cpu_seconds"] = used.ru_utime + used.ru_stime
print(json.dumps({"rows": rows, **seconds, "peak_megabytes": used.ru_maxrss / 1024}))
"""


def figures(*, quick: bool) -> dict[str, Any]:
    """Makes the runs, loads and compares them in a process of its own.

    Args:
        quick: a tenth of the runs.

    Returns:
        Wall seconds of loading (imports included), of the page and of both; CPU seconds of both, which other work on
        the machine lengthens less; peak resident megabytes; sizes.
    """
    runs = QUICK_RUNS if quick else RUNS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written_bytes = write_runs(folder / "runs", runs=runs)
        page = folder / "comparison.html"
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(folder / "runs"), str(page)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        total_seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"the comparison of {runs} runs failed:\n{done.stderr[-2000:]}")
        page_megabytes = page.stat().st_size / 2**20
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        "runs": runs,
        "checkpoints": CHECKPOINTS,
        "tasks": TASKS,
        "records_megabytes": written_bytes / 2**20,
        **measured,
        "total_seconds": total_seconds,
        "page_megabytes": page_megabytes,
        "within_limits": total_seconds < SECONDS_ALLOWED and measured["peak_megabytes"] < MEGABYTES_ALLOWED,
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = [
        ("runs × checkpoints × tasks", f"{figures['runs']} × {figures['checkpoints']} × {figures['tasks']}"),
        ("scores", f"{figures['rows']:,}"),
        ("records on disk", f"{figures['records_megabytes']:,.0f} MiB"),
        ("loading", f"{figures['load_seconds']:.1f} s"),
        ("comparison page", f"{figures['report_seconds']:.1f} s, {figures['page_megabytes']:.1f} MiB"),
        ("in all", f"{figures['total_seconds']:.1f} s, {figures['cpu_seconds']:.1f} s of CPU"),
        ("peak memory", f"{figures['peak_megabytes']:,.0f} MiB"),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| one process | |", "|---|---:|", *lines])


def write_runs(folder: Path, *, runs: int) -> int:
    """Writes run directories; returns the bytes written. Every eighth run is of one size; each has its own noise."""
    written = 0
    for number in range(runs):
        size = number % len(_SIZES)
        name = f"recipe{number // len(_SIZES):02d}-{_LABELS[size]}"
        written += _write_run(folder / name, name, parameters=_SIZES[size], noise=np.random.default_rng(number))
    return written


def _write_run(directory: Path, name: str, *, parameters: float, noise: np.random.Generator) -> int:
    directory.mkdir(parents=True)
    total_steps = CHECKPOINTS * 1000
    chance = {f"task_{task:03d}": (0.0, 0.25, 0.5)[task % 3] for task in range(TASKS)}
    events = [
        {"time": 0.0, "step": 0, "kind": "start", "parameters": int(parameters)},
        {"time": 1.0, "step": 0, "kind": "probe_plan", "chance": chance},
        *({"time": 2.0, "step": 1000 * save, "kind": "save", "seconds": 1.0} for save in range(CHECKPOINTS)),
    ]
    files = {
        "probes.jsonl": "".join(_probe_lines(name, parameters, noise)),
        "metrics.jsonl": "".join(_metric_lines(parameters, total_steps, noise)),
        "events.jsonl": "".join(json.dumps(event) + "\n" for event in events),
        "config.yaml": (
            f"run: {{name: {name}, seed: 0, dir: runs}}\n"
            f"train: {{steps: {total_steps}, tokens: null, global_batch_size: 1024, sequence_length: 2048}}\n"
        ),
    }
    for file, text in files.items():
        (directory / file).write_text(text)
    return sum(map(len, files.values()))


def _probe_lines(name: str, parameters: float, noise: np.random.Generator) -> list[str]:
    """What `probes.jsonl` holds, lines as `Measurement.to_json` makes them."""
    steps = 1000 * np.arange(1, CHECKPOINTS + 1)
    tokens = steps * TOKENS_PER_STEP
    easy = np.linspace(-1.5, 2.5, TASKS)
    ability = 0.35 * np.log(tokens / 1e10)[:, None] + 0.45 * math.log(parameters / 1e9) - easy[None, :]
    chance = np.array([0.0, 0.25, 0.5])[np.arange(TASKS) % 3]
    value = chance + (0.95 - chance) / (1 + np.exp(-ability)) + noise.normal(0, 0.008, ability.shape)
    value = np.clip(value, 0.0, 1.0)
    ends = [
        f'", "domain": "{_DOMAINS[task % len(_DOMAINS)]}", "num_fewshot": 0, "metric": "acc", "value": '
        for task in range(TASKS)
    ]
    tail = (
        ', "num_items": 1000, "plan_hash": "b885499fc0dc9550", "config_hash": "8017c7ff09066276", "seconds": 61.75}\n'
    )
    lines = []
    for row, step in enumerate(steps):
        flops = 6.0 * parameters * float(tokens[row])
        head = f'{{"run": "{name}", "step": {step}, "tokens": {tokens[row]}, "flops": {flops}, "suite": "wide", '
        head += '"task": "task_'
        scores = value[row].tolist()
        lines += [
            f'{head}{task:03d}{ends[task]}{scores[task]!r}, "stderr": 0.0150519{task:02d}{tail}'
            for task in range(TASKS)
        ]
    return lines


def _metric_lines(parameters: float, total_steps: int, noise: np.random.Generator) -> list[str]:
    steps = np.unique(np.linspace(1, total_steps, METRIC_ROWS).astype(int))
    tokens = steps * TOKENS_PER_STEP
    loss = 1.7 + 400 / parameters**0.34 + 410 / tokens**0.28 + noise.normal(0, 0.02, len(steps))
    lines = []
    for step, seen, value in zip(steps.tolist(), tokens.tolist(), loss.tolist(), strict=True):
        row: dict[str, Any] = {"step": step, "tokens": seen, "train/loss": value, "train/grad_norm": 0.4}
        row |= {"train/learning_rate": 3e-4 * (0.55 + 0.45 * math.cos(math.pi * step / total_steps))}
        row |= {"perf/tokens_per_second": 2.1e5, "perf/step_seconds": 9.9, "flops": 6 * parameters * seen}
        if step % 1000 < total_steps / METRIC_ROWS:
            row |= {"validation/web/loss": value + 0.05, "validation/code/loss": value - 0.6}
        lines.append(json.dumps(row) + "\n")
    return lines
