"""Scoring speed against lm-eval's HFLM: same weights, items, threads and process; tokenising counts for neither.

`python -m tests.bench.probe_speed [--quick] --json FILE` writes one result file: requests a second over HFLM's on two
suites (ten zero-shot tasks; MMLU with 5 examples), tokens each side computes, padding, where our time goes, and how far
the log-likelihoods lie apart. HFLM gets its best batch size, found on every fifth item of the suite, and keeps its
`logits_cache`, which shares a forward pass between single-token choices. Rounds alternate the two; figures are medians
of wall time, and of CPU time for machines that are not quiet.

Needs the public benchmark items, see tests/support/eval_data.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pretrain.engine.base import CheckpointScorer, TokenLogProbs
from pretrain.errors import ProbeError
from probes.harness import load_harness
from probes.plan import Plan, PlanSettings, compile_plan
from probes.request import Request
from probes.score import gather_answers
from probes.suite import Suite, TaskSpec
from tests.bench.result import describe_machine, is_quiet, package_versions, ratio, write_result
from tests.bench.scoring.model import MAX_LENGTH, VOCAB_SIZE, build_ours, build_peer, prepare
from tests.support.eval_data import eval_source, missing_reason, write_eval_data

THREADS = 2
ZERO_SHOT = (
    "arc_easy", "arc_challenge", "hellaswag", "piqa", "sciq", "openbookqa", "winogrande", "boolq", "lambada_openai",
)  # fmt: skip
BLIMP = ("adjunct_island", "anaphor_number_agreement", "passive_1", "wh_island")
"""The tenth task: lm-eval has one for each phenomenon, so these four share its items."""
SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine",
)  # fmt: skip
"""The first ten by name. All their prompts fit into 2,048 tokens: those that are cut from the left share nothing."""
_BATCHES = (1, 4, 8, 16, 32, 64)
_ROUNDS = {"zero_shot": 5, "mmlu_5shot": 3}


def suites(*, quick: bool) -> dict[str, Suite]:
    """What is scored, by the figure it gives: 40 and 100 items a task, quick 8 and 10 of two subjects."""
    items = 8 if quick else 40
    zero = [TaskSpec(task=name, domain="zero", num_fewshot=0, limit=items) for name in ZERO_SHOT]
    zero += [TaskSpec(task=f"blimp_{name}", domain="zero", limit=items // len(BLIMP)) for name in BLIMP]
    mmlu = [
        TaskSpec(task=f"mmlu_{name}", domain="mmlu", num_fewshot=5, limit=10 if quick else 100)
        for name in SUBJECTS[: 2 if quick else None]
    ]
    return {"zero_shot": Suite("zero_shot", tuple(zero)), "mmlu_5shot": Suite("mmlu_5shot", tuple(mmlu))}


@dataclass(slots=True)
class Clocked:
    """Seconds of each round of one side."""

    wall: list[float]
    cpu: list[float]

    def run(self, work: Callable[[], Any]) -> Any:
        """Does the work and notes what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return result


class Peer:
    """HFLM, asked for token log-likelihoods directly."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.num_tokens = 0

    def score(self, requests: list[Request], batch_size: int) -> list[tuple[float, bool]]:
        """Log-likelihood and greedy flag of each request."""
        asked = [(("", ""), list(request.context), list(request.continuation)) for request in requests]
        self._model.batch_size_per_gpu = batch_size
        answers: list[tuple[float, bool]] = self._model._loglikelihood_tokens(asked, disable_tqdm=True)
        return answers

    def count_tokens(self, requests: list[Request], batch_size: int) -> tuple[list[tuple[float, bool]], int]:
        """Answers, and the tokens the model computed for them, padding included."""
        tokens, call = 0, self._model._model_call

        def counting(inputs: Any, **options: Any) -> Any:
            nonlocal tokens
            tokens += inputs.numel()
            return call(inputs, **options)

        self._model._model_call = counting
        try:
            return self.score(requests, batch_size), tokens
        finally:
            del self._model._model_call

    def best_batch_size(self, requests: list[Request]) -> tuple[int, dict[str, float]]:
        """The fastest batch size on every fifth item, and the CPU seconds of all that were tried.

        HFLM holds the logits of a batch three times over (fp32, their softmax, and a copy): sizes for which that is
        more than half of the free memory are not tried, they would end this process.
        """
        some = [request for request in requests if request.item % 5 == 0]
        self.score(some[:8], 8)  # threads start, pages are touched
        longest = max(len(request.context) + len(request.continuation) for request in requests)
        row_bytes = 3 * 4 * longest * VOCAB_SIZE
        clocks = {
            size: Clocked([], []) for size in _BATCHES if size * row_bytes < psutil.virtual_memory().available / 2
        }
        for size, clock in clocks.items():
            clock.run(lambda size=size: self.score(some, size))
        return min(clocks, key=lambda size: clocks[size].cpu[0]), {str(s): c.cpu[0] for s, c in clocks.items()}


def measure(suite: Suite, plan: Plan, requests: list[Request], ours: CheckpointScorer, peer: Peer, rounds: int) -> Any:
    """Both sides in turns; a dictionary of everything that was seen."""
    from tests.bench.scoring.parts import share_of_parts

    batch_size, tried = peer.best_batch_size(requests)
    theirs, peer_tokens = peer.count_tokens(requests, batch_size)
    scored: TokenLogProbs = ours.score(plan.rows)
    answers = gather_answers(plan, scored)
    delta = [abs(a - b) for a, (b, _) in zip(answers.log_likelihood_R.tolist(), theirs, strict=True)]
    unequal = sum(bool(a) != bool(b) for a, (_, b) in zip(answers.is_greedy_R, theirs, strict=True))
    clock, peer_clock = Clocked([], []), Clocked([], [])
    for number in range(rounds):
        peer_clock.run(lambda: peer.score(requests, batch_size))
        clock.run(lambda: ours.score(plan.rows))
        print(f"{suite.name} round {number}: HFLM {peer_clock.wall[-1]:.2f} s, ours {clock.wall[-1]:.2f} s", flush=True)
    wall, cpu = statistics.median(clock.wall), statistics.median(clock.cpu)
    peer_wall, peer_cpu = statistics.median(peer_clock.wall), statistics.median(peer_clock.cpu)
    return {
        "requests": len(requests),
        "ratio": ratio(peer_wall, wall),
        "ratio_cpu": ratio(peer_cpu, cpu),
        "seconds": wall,
        "seconds_peer": peer_wall,
        "cpu_seconds": cpu,
        "cpu_seconds_peer": peer_cpu,
        "tokens": plan.stats["tokens"],
        "tokens_peer": peer_tokens,
        "tokens_each_request_alone": plan.stats["naive_tokens"],
        "padding": plan.stats["padding"],
        "rows": plan.stats["rows"],
        "block_length": plan.stats["block_length"],
        "max_abs_delta_loglikelihood": max(delta),
        "unequal_greedy_flags": unequal,
        "peer_batch_size": batch_size,
        "peer_cpu_seconds_by_batch_size": tried,
        "share_of_time": share_of_parts(lambda: ours.score(plan.rows)),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.probe_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few items and rounds: to see that it runs")
    parser.add_argument("--json", type=Path, required=True, help="result file")
    parser.add_argument("--rounds", type=int, help="timed passes of each side (default 5; MMLU 3; quick 2)")
    parser.add_argument("--folder", type=Path, help="keep tokenizer, model and data here for the next time")
    options = parser.parse_args()
    if eval_source() is None:
        print(f"probe_speed cannot run: {missing_reason()}.", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rounds = {name: options.rounds or (2 if options.quick else number) for name, number in _ROUNDS.items()}
    with tempfile.TemporaryDirectory(prefix="fineline-bench-") as scratch:
        results, machine = _run(options.folder or Path(scratch), suites(quick=options.quick), rounds)
    figures = {
        **{f"ratio_{name}": found["ratio"] for name, found in results.items()},
        "padding_waste": max(found["padding"] for found in results.values()),
        "max_abs_delta_loglikelihood": max(found["max_abs_delta_loglikelihood"] for found in results.values()),
        **results,
    }
    flags = ["--quick"] * options.quick + [f"--rounds {options.rounds}"] * bool(options.rounds)
    command = " ".join(["python -m tests.bench.probe_speed", *flags, "--json", options.json.name])
    versions = package_versions(["torch", "megatron-core", "lm-eval", "transformers"])
    write_result(options.json, name="probe_speed", figures=figures, command=command, machine=machine, versions=versions)
    for name, value in figures.items():
        print(f"{name}: {value}")
    return 0


def _run(folder: Path, wanted: dict[str, Suite], rounds: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    machine = describe_machine(threads=THREADS)
    is_quiet(machine)
    torch.set_num_threads(THREADS)
    tokenizer, spec, weights = prepare(folder)
    data = folder / "data"
    if not data.exists():
        write_eval_data(data, limit=200)
    ours, peer = build_ours(spec, weights), Peer(build_peer(weights))
    results: dict[str, Any] = {}
    try:
        for name, suite in wanted.items():
            captured = load_harness(suite, data_dir=data).capture(tokenizer, add_bos=False, max_length=MAX_LENGTH)
            if captured.skipped:
                raise ProbeError(f"{len(captured.skipped)} items were left out, the first: {captured.skipped[0]}")
            plan = compile_plan(captured, tokenizer, PlanSettings(max_length=MAX_LENGTH, add_bos=False))
            results[name] = measure(suite, plan, list(captured.requests), ours, peer, rounds[name])
    finally:
        ours.close()
    return results, machine


if __name__ == "__main__":
    sys.exit(main())
