"""Scoring speed on one GPU: ten tasks on a 1.3B and a 7B, against training, the forward roofline and lm-eval's HFLM.

    python -m tests.bench.gpu_probe --models 1.3b 7b --training FILE --json tests/bench/results/gpu_probe.json

FILE is a result of `gpu_step`, whose training speed the scoring is held against. Items are random tokens of the
published tasks' lengths (`tests/bench/gpu/items.py`). Both sides read the same bf16 weights; HFLM gets its best batch
size on a part of the items and keeps its logits cache. The roofline is 2 FLOPs for every weight that meets a token, and
attention as causal training counts it, at the speed of an 8,192³ product measured in the same run. `--quick` runs tiny
sizes on a CPU, to see that everything works: its figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.checkpoint.tokenizer_files import write_tokenizer_files
from pretrain.config.model import ModelConfig
from pretrain.flops import flops_per_token
from pretrain.model.spec import ModelSpec
from probes.pack import Packing, pack
from tests.bench.gpu import machine
from tests.bench.gpu.items import TASKS, draw_requests
from tests.bench.gpu.task import QUICK, SHAPES, Shape
from tests.bench.probe_speed import Peer
from tests.bench.result import ratio, write_result
from tests.bench.scoring.model import MAX_LENGTH, build_ours, build_peer, prepare_model, train_on_bundled_text

_PEER_BATCHES = (8, 32, 128, 256)
_PEER_SHARE = 0.1
"""Of the items, on which HFLM's batch size is chosen."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu_probe", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["1.3b", "7b"])
    parser.add_argument("--json", type=Path, required=True, help="result file")
    parser.add_argument("--training", type=Path, help="result of gpu_step, for training speed")
    parser.add_argument("--tokens-per-row", type=int, nargs="+", default=[4096, 8192, 16_384])
    parser.add_argument("--share", type=float, default=1.0, help="of the items")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes on a CPU")
    options = parser.parse_args()
    shapes = {name: (QUICK if options.quick else SHAPES)[name] for name in options.models}
    share, cube = (0.002, 256) if options.quick else (options.share, 8192)
    figures: dict[str, Any] = {"peak_flops_per_second": _peak(cube), "tasks": list(TASKS), "share": share}
    for name, shape in shapes.items():
        with tempfile.TemporaryDirectory(prefix="fineline-bench-") as folder:
            figures[name] = _measure(shape, Path(folder), options, share, figures["peak_flops_per_second"])
        figures[name] |= _against_training(options.training, name, figures[name]["tokens_per_second"])
        print(json.dumps({name: figures[name]}, indent=2), flush=True)
    command = shlex.join(["python", "-m", "tests.bench.gpu_probe", *sys.argv[1:]])
    versions = machine.versions(["megatron-core", "lm-eval", "transformers"])
    write_result(
        options.json,
        name="gpu_probe",
        figures=figures,
        command=command,
        machine=machine.describe(),
        versions=versions,
    )
    return 0


def _measure(shape: Shape, folder: Path, options: Any, share: float, peak: float) -> dict[str, Any]:
    model = shape.model()
    requests = draw_requests(share=share, vocab_size=shape.vocab_size)
    spec = prepare_model(folder, model, shape.vocab_size)
    packings = {size: pack(requests, max_length=MAX_LENGTH, tokens_per_row=size) for size in options.tokens_per_row}
    seconds, best, answers = _ours(spec, folder, model, packings, options.rounds)
    _empty_cache()
    # HFLM wants a tokenizer; it is given tokens and never asks it.
    train_on_bundled_text(folder / "tokenizer.model", vocab_size=512)
    write_tokenizer_files(folder / "tokenizer.model", folder, add_bos=False)
    peer = Peer(build_peer(folder, dtype="bfloat16", device=_device()))
    some = requests[:: round(1 / _PEER_SHARE)]
    tried = {batch: _median(lambda b=batch: peer.score(some, b), 1) for batch in _PEER_BATCHES}
    batch = min(tried, key=lambda size: tried[size])
    peer_seconds = _median(lambda: peer.score(requests, batch), max(1, options.rounds - 2))
    delta = [abs(a - b) for a, (b, _) in zip(answers, peer.score(requests, batch), strict=True)]
    tokens = packings[best].stats["tokens"]
    naive = packings[best].stats["naive_tokens"]
    forward = flops_per_token(model, vocab_size=shape.vocab_size, sequence_length=round(naive / len(requests)))
    roofline = peak / (forward.causal / 3)
    return {
        "requests": len(requests),
        "tokens": tokens,
        "tokens_each_request_alone": naive,
        "seconds_per_suite": seconds[best],
        "tokens_per_row": best,
        "seconds_by_tokens_per_row": {str(size): value for size, value in seconds.items()},
        "tokens_per_second": tokens / seconds[best],
        "tokens_per_second_of_the_roofline": roofline,
        "share_of_the_roofline": tokens / seconds[best] / roofline,
        "padding": packings[best].stats["padding"],
        "seconds_peer": peer_seconds,
        "ratio": ratio(peer_seconds, seconds[best]),
        "peer_batch_size": batch,
        "max_abs_delta_loglikelihood": max(delta),
        "mean_abs_delta_loglikelihood": statistics.fmean(delta),
    }


def _ours(
    spec: ModelSpec, folder: Path, model: ModelConfig, packings: dict[int, Packing], rounds: int
) -> tuple[dict[int, float], int, list[float]]:
    """Seconds by tokens of a row, the best of these, and its log-likelihoods. Leaves the device empty."""
    scorer = build_ours(spec, folder, model=model, compute="bf16")
    seconds = {size: _median(partial(scorer.score, one.rows), rounds) for size, one in packings.items()}
    best = min(seconds, key=lambda size: seconds[size])
    answers = _log_likelihoods(packings[best], scorer.score(packings[best].rows).log_prob_P)
    scorer.close()
    torch.distributed.destroy_process_group()
    return seconds, best, answers


def _log_likelihoods(packing: Packing, log_prob_P: Any) -> list[float]:
    """Of each request, the sum over its continuation."""
    found: list[float] = np.add.reduceat(log_prob_P[packing.span_pairs], packing.span_offsets_R1[:-1]).tolist()
    return found


def _against_training(result: Path | None, model: str, scoring: float) -> dict[str, Any]:
    if result is None:
        return {
            "training_tokens_per_second": None,
            "missing": {"training_tokens_per_second": "no --training was given"},
        }
    best = json.loads(result.read_text())["figures"][f"tokens_per_second_{model.replace('.', 'p')}"]
    return {"training_tokens_per_second": best, "scoring_over_training": scoring / best}


def _peak(cube: int) -> float:
    from tests.bench.gpu.gemm import measure

    return float(measure(cube=cube, shapes={}, repeats=10)["peak_flops_per_second"])


def _median(work: Callable[[], Any], rounds: int) -> float:
    work()  # compiles, and chooses kernels
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()  # ends with answers on the host
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _empty_cache() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
