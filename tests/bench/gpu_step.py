"""Training speed on one GPU: ours over micro-batch sizes, against the card's own ceilings and against peers.

    python -m tests.bench.gpu_step --models 1.3b --json tests/bench/results/gpu_step.json
    python -m tests.bench.gpu_step --models 7b --resume --json tests/bench/results/gpu_step.json

Every configuration is a process of its own with a time limit; what does not fit is recorded as out of memory. Steps
are timed one by one with device events after warm-up, on random tokens; the step after them is profiled. Matrix
products are measured in the same run: 8,192³, and the model's own. `--variants` compares fast and plain kernels, and
each choice without the others; `--resume` goes on with an earlier file, `--minutes` ends in time.

MFU is by definitions A and B of `pretrain.flops`. A peer's speed is the best of its micro-batch sizes, as ours is; all
have the same tokens in a step. `--quick` runs tiny sizes on a CPU, to see that everything works: its figures say
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.flops import flops_per_token, mfu
from tests.bench.gpu import machine
from tests.bench.gpu.runs import Runs
from tests.bench.gpu.task import QUICK, SHAPES, Shape, Task
from tests.bench.result import ratio, write_result

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "torchtitan": ("torchtitan_trainer", {}),
    "hf_liger": ("hf_trainer", {"liger": True}),
    "hf": ("hf_trainer", {}),
    "litgpt": ("litgpt_fit", {"precision": "bf16-mixed"}),
    "litgpt_bf16_true": ("litgpt_fit", {"precision": "bf16-true"}),
    "mcore_local": ("megatron_core", {}),
}
"""Module and options of each. All keep fp32 weights and moments but `litgpt_bf16_true`, litgpt's default."""

VARIANTS: dict[str, dict[str, str]] = {
    "plain": {"kernels": "plain"},
    "attention_flash": {"kernels.attention": "flash"},
    "attention_cudnn": {"kernels.attention": "cudnn"},
    "layers_plain": {"kernels.layers": "plain"},
    "not_compiled": {"kernels.compile": "false"},
    "loss_whole": {"kernels.loss": "whole"},
    "weight_gradients_plain": {"kernels.weight_gradients": "plain"},
    "optimizer_plain": {"kernels.optimizer": "plain"},
    "cuda_graphs": {"kernels.cuda_graphs": "true"},
    "recompute_selective": {"engine.recompute": "selective"},
    "fp8": {"precision.fp8": "true"},
}
"""Overrides of each; the rest stays as chosen by default."""


def main() -> int:
    """Command line."""
    arguments = _arguments()
    shapes = {name: (QUICK if arguments.quick else SHAPES)[name] for name in arguments.models}
    runs = Runs(
        arguments.json.with_suffix(".partial.json"),
        resume=arguments.resume,
        limit_seconds=arguments.limit_seconds,
        total_seconds=arguments.minutes and 60.0 * arguments.minutes,
    )
    host = machine.describe()
    pythons = dict(one.split("=", 1) for one in arguments.python)
    _measure_gemm(runs, shapes, quick=arguments.quick)
    for model, shape in shapes.items():
        sizes = arguments.micro_batch_sizes or shape.micro_batch_sizes
        for name, task in _tasks(model, shape, arguments, runs, sizes):
            peer = name.split("/")[1]
            runs.run(name, "worker", task.to_json(), python=pythons.get(peer, sys.executable))
    figures = figures_of(runs.outcomes, gpu=(host["gpu"] or {}).get("name", ""), quick=arguments.quick)
    packages = {k: v for one in runs.outcomes.values() for k, v in one.get("versions", {}).items()}
    command = shlex.join(["python", "-m", "tests.bench.gpu_step", *_shown(sys.argv[1:])])
    write_result(arguments.json, name="gpu_step", figures=figures, command=command, machine=host, versions=packages)
    print(json.dumps({key: value for key, value in figures.items() if not isinstance(value, dict)}, indent=1))
    return 0


def _measure_gemm(runs: Runs, shapes: Mapping[str, Shape], *, quick: bool) -> None:
    for model, shape in shapes.items():
        task = {
            "cube": 256 if quick else 8192,
            "repeats": 3 if quick else 30,
            "shapes": {
                model: {
                    "shape": dataclasses.asdict(shape),
                    "tokens": max(shape.micro_batch_sizes) * shape.sequence_length,
                }
            },
        }
        runs.run(f"{model}/gemm", "gemm", task)


def _tasks(
    model: str, shape: Shape, arguments: argparse.Namespace, runs: Runs, sizes: tuple[int, ...]
) -> Iterator[tuple[str, Task]]:
    """What is run of a model, the most telling first; variants at the size that was best."""
    steps = {"warmup_steps": 1, "timed_steps": 2} if arguments.quick else {}
    own = {"precision": "bf16"}

    def task(contender: str, size: int, options: Mapping[str, Any]) -> Task:
        return Task(
            contender=contender, model=model, shape=shape, micro_batch_size=size, options=dict(options), **steps
        )

    for size in sizes:
        yield f"{model}/ours/{size}", task("ours", size, own)
    for peer in arguments.peers:
        module, options = PEERS[peer]
        tried = sorted(sizes, reverse=True)
        while tried:
            size = tried.pop(0)
            name = f"{model}/{peer}/{size}"
            yield name, task(module, size, options)
            status = runs.outcomes[name]["status"]
            if status in ("missing", "failed"):
                break
            if status == "out of memory" and not tried and size > 1:
                tried = [size // 2]
    if arguments.variants:
        best = _best(runs.outcomes, model, "ours")
        for variant, overrides in VARIANTS.items():
            if best:
                size = best["task"]["micro_batch_size"]
                yield f"{model}/ours/{size}/{variant}", task("ours", size, own | overrides)


def figures_of(outcomes: Mapping[str, Mapping[str, Any]], *, gpu: str, quick: bool) -> dict[str, Any]:
    """The figures of all that was run.

    Args:
        outcomes: by `model/contender/micro-batch size[/variant]`, and `model/gemm`.
        gpu: its name; empty where there is none, and every MFU is null.
        quick: tiny sizes: recorded, so that nobody quotes them.
    """
    figures: dict[str, Any] = {"quick": quick}
    missing: dict[str, str] = {}
    models = list(dict.fromkeys(name.split("/")[0] for name in outcomes))
    for model in models:
        best = _best(outcomes, model, "ours")
        key = model.replace(".", "p")
        figures[f"mfu_a_{key}"] = None
        if best is None:
            missing[f"mfu_a_{key}"] = "; ".join(_failures(outcomes, model, "ours")) or "not run"
            continue
        figures |= {f"{name}_{key}": value for name, value in _shares(best, outcomes[f"{model}/gemm"], gpu).items()}
        if figures[f"mfu_a_{key}"] is None:
            missing[f"mfu_a_{key}"] = "the peak of this device is not known"
        for peer in PEERS:
            theirs = _best(outcomes, model, peer)
            figures[f"ratio_{peer}_{key}"] = ratio(best["tokens_per_second"], theirs and theirs["tokens_per_second"])
            if theirs is None:
                missing[f"ratio_{peer}_{key}"] = "; ".join(_failures(outcomes, model, peer)) or "not run"
        figures[f"variants_{key}"] = _variants(outcomes, model, best)
    for peer in PEERS:
        found = [r for model in models if (r := figures.get(f"ratio_{peer}_{model.replace('.', 'p')}")) is not None]
        figures[f"ratio_{peer}"] = min(found, default=None)
        if not found:
            missing[f"ratio_{peer}"] = "no model with both"
    return figures | {"runs": {name: _without_task(one) for name, one in outcomes.items()}, "missing": missing}


def _shares(best: Mapping[str, Any], gemm: Mapping[str, Any], gpu: str) -> dict[str, Any]:
    """Speed of a run as shares: of the data sheet's peak, and of what products attained in the same run."""
    task = Task.from_json(best["task"])
    shape, speed = task.shape, best["tokens_per_second"]
    flops = flops_per_token(shape.model(), vocab_size=shape.vocab_size, sequence_length=shape.sequence_length)
    shares: dict[str, Any] = {
        "tokens_per_second": speed,
        "micro_batch_size": task.micro_batch_size,
        "mfu_a": mfu(speed, flops.full_attention, num_devices=1, device_name=gpu),
        "mfu_b": mfu(speed, flops.causal, num_devices=1, device_name=gpu),
    }
    if gemm["status"] == "measured":
        peak, own = gemm["peak_flops_per_second"], gemm[task.model]["flops_per_second"]
        shares |= {
            "share_of_gemm_peak_a": speed * flops.full_attention / peak,
            "share_of_gemm_peak_b": speed * flops.causal / peak,
            "share_of_own_products_a": speed * flops.full_attention / own,
        }
    return shares


def _best(outcomes: Mapping[str, Mapping[str, Any]], model: str, contender: str) -> Mapping[str, Any] | None:
    """The fastest measured run of a contender without variants."""
    found = [
        one
        for name, one in outcomes.items()
        if name.split("/")[:2] == [model, contender] and name.count("/") == 2 and one["status"] == "measured"
    ]
    return max(found, key=lambda one: one["tokens_per_second"], default=None)


def _variants(outcomes: Mapping[str, Mapping[str, Any]], model: str, best: Mapping[str, Any]) -> dict[str, Any]:
    """Speed of each variant over that of the default at the same micro-batch size."""
    size = best["task"]["micro_batch_size"]
    found = {}
    for variant in VARIANTS:
        one = outcomes.get(f"{model}/ours/{size}/{variant}")
        if one is not None:
            measured = one["status"] == "measured"
            found[variant] = ratio(one["tokens_per_second"], best["tokens_per_second"]) if measured else one["status"]
    return found


def _failures(outcomes: Mapping[str, Mapping[str, Any]], model: str, contender: str) -> list[str]:
    return [
        f"{name}: {one['status']}: {one['reason'].strip().splitlines()[-1]}"
        for name, one in outcomes.items()
        if name.split("/")[:2] == [model, contender] and one["status"] != "measured"
    ]


def _without_task(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome without what the settings repeat in every task."""
    kept = {key: value for key, value in outcome.items() if key not in ("task", "versions")}
    options = outcome["task"].get("options")
    return kept | ({"options": options} if options else {})


def _shown(arguments: list[str]) -> list[str]:
    """The command line without places of environments, which are this machine's business."""
    return [
        f"{one.split('=')[0]}=PYTHON" if index and arguments[index - 1] == "--python" else one
        for index, one in enumerate(arguments)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write; FILE.partial.json grows meanwhile")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--micro-batch-sizes", nargs="+", type=int, help="sequences; default: the model's own list")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="default: none")
    parser.add_argument("--variants", action="store_true", help="also plain kernels, and each choice on its own")
    parser.add_argument("--python", action="append", default=[], help="PEER=PATH: interpreter for a peer; repeatable")
    parser.add_argument("--limit-seconds", type=float, default=240.0, help="of one configuration (default 240)")
    parser.add_argument("--minutes", type=float, help="of the whole benchmark: what is left then is not run")
    parser.add_argument("--resume", action="store_true", help="keep what FILE.partial.json holds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, also on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
