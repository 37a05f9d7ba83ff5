"""A run directory with the shape and noise of a real small run, made without training.

Curves follow power laws and logistic growth from one seed, so tests and screenshots are the same everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.track.sink import RunInfo
from probes.record import Measurement

TOKENS_PER_STEP = 16_384
DOMAINS = {
    "commonsense": {"hellaswag": (0.25, 0.33), "piqa": (0.50, 0.61), "winogrande": (0.50, 0.51)},
    "knowledge": {"arc_easy": (0.25, 0.39), "openbookqa": (0.25, 0.27)},
    "language": {"blimp": (0.51, 0.78), "lambada": (0.0, 0.19)},
}
CHANCE = {"hellaswag": 0.25, "piqa": 0.5, "winogrande": 0.5, "arc_easy": 0.25, "openbookqa": 0.25, "blimp": 0.5}


def run_info(directory: Path, *, total_steps: int = 100, resume_step: int = 0) -> RunInfo:
    """What the tracker of a small run is told."""
    return RunInfo(
        directory=directory,
        name="demo",
        config={"run": {"name": "demo", "seed": 0}, "train": {"steps": total_steps}},
        config_hash="0123456789abcdef",
        total_steps=total_steps,
        resume_step=resume_step,
        domains=list(DOMAINS),
    )


def write_synthetic_run(directory: Path, *, steps: int = 400, done: int | None = None, probes: bool = True) -> Path:
    """Writes config.yaml, metrics.jsonl, probes.jsonl and events.jsonl.

    Args:
        directory: created; becomes the run directory.
        steps: steps the run was to do.
        done: steps it has done; all by default.
        probes: whether it was probed.
    """
    directory.mkdir(parents=True)
    done = steps if done is None else done
    noise = np.random.default_rng(7)
    saves = sorted({0, *(2**k for k in range(20) if 2**k < done), done})
    _write(directory / "metrics.jsonl", _metric_rows(done, steps, saves, noise))
    if probes:
        _write(directory / "probes.jsonl", _probe_rows(saves, steps, noise))
    _write(directory / "events.jsonl", _event_rows(saves))
    (directory / "config.yaml").write_text(
        "run:\n  name: demo\n  seed: 0\n  dir: runs\n"
        f"train:\n  steps: {steps}\n  micro_batch_size: 4\n  global_batch_size: 32\n  sequence_length: 512\n"
        "model:\n  name: tiny  # <b>not</b> markup & such\n  num_layers: 6\n  hidden_size: 256\n"
    )
    return directory


def _metric_rows(done: int, steps: int, saves: list[int], noise: np.random.Generator) -> Iterator[dict[str, Any]]:
    for step in range(done + 1):
        tokens = step * TOKENS_PER_STEP
        row: dict[str, Any] = {"step": step, "tokens": tokens, "flops": 6 * 11e6 * tokens}
        loss = _loss(step)
        if step:
            row |= {
                "train/loss": loss + float(noise.normal(0, 0.04)),
                "train/grad_norm": 0.4 + 2.5 * math.exp(-step / 30) + float(abs(noise.normal(0, 0.05))),
                "train/learning_rate": 1e-3 * min(1.0, step / 20) * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
                "perf/tokens_per_second": 21_500 + float(noise.normal(0, 600)),
                "perf/step_seconds": 0.76,
                "perf/mfu": 0.31 + float(noise.normal(0, 0.01)),
                "time/training_seconds": 0.76,
                "data/stories/tokens": int(tokens * 0.7),
                "data/encyclopedia/tokens": int(tokens * 0.3),
            }
        if step in saves:
            for domain, offset in {"stories": -0.3, "encyclopedia": 0.35}.items():
                row[f"validation/{domain}/loss"] = loss + offset
                row[f"validation/{domain}/bits_per_byte"] = (loss + offset) / math.log(2) / 4.1
            row |= {"time/validation_seconds": 1.9, "time/saving_seconds": 0.6}
        yield row


def _probe_rows(saves: list[int], steps: int, noise: np.random.Generator) -> Iterator[dict[str, Any]]:
    for step in saves:
        grown = 1 / (1 + math.exp(-2.2 * (math.log1p(step) - 0.72 * math.log1p(steps))))
        for domain, tasks in DOMAINS.items():
            scores = {}
            for task, (low, high) in tasks.items():
                error = math.sqrt(0.22 / 400)
                accuracy = max(0.0, low + (high - low) * grown + float(noise.normal(0, error / 2)))
                bits = 2.6 - 1.4 * grown + float(noise.normal(0, 0.01))
                scores[task] = {
                    "acc": (accuracy, error),
                    "gold_bpb": (bits, 0.03),
                    "correct_prob": (low + 0.6 * (accuracy - low), 0.008),
                }
            scores["mean"] = {
                metric: (
                    float(np.mean([scores[task][metric][0] for task in tasks])),
                    math.sqrt(sum(scores[task][metric][1] ** 2 for task in tasks)) / len(tasks),
                )
                for metric in ("acc", "gold_bpb", "correct_prob")
            }
            for task, by_metric in scores.items():
                for metric, (value, error) in by_metric.items():
                    yield measurement(step, domain, task, metric, value, error).to_json()


def measurement(step: int, domain: str, task: str, metric: str, value: float, error: float | None) -> Measurement:
    """One measurement of the synthetic run."""
    return Measurement(
        run="demo",
        step=step,
        tokens=step * TOKENS_PER_STEP,
        flops=6 * 11e6 * step * TOKENS_PER_STEP,
        suite="demo",
        task=task,
        domain=domain,
        num_fewshot=0,
        metric=metric,
        value=value,
        stderr=error,
        num_items=400,
        plan_hash="a1b2c3d4",
        config_hash="0123456789abcdef",
        seconds=6.4,
    )


def _event_rows(saves: list[int]) -> Iterator[dict[str, Any]]:
    started = 1_700_000_000.0
    yield {"time": started, "step": 0, "kind": "start", "parameters": 11_010_048, "world_size": 4}
    yield {"time": started + 1, "step": 0, "kind": "probe_plan", "chance": CHANCE}
    for step in saves:
        yield {"time": started + step * 0.76 + 5, "step": step, "kind": "save", "path": f"step_{step:08d}"}
    yield {"time": started + 130, "step": 64, "kind": "resume", "from_step": 64, "reason": "SIGTERM <node-3>"}


def _loss(step: int) -> float:
    return 2.1 + 8.3 * (1 + step / 1.5) ** -0.42


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
