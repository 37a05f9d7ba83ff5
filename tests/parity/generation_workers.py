"""What the ranks of `test_generation` run: a model with random weights continues prompts between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pretrain.engine.base import GenerationRequest
from pretrain.engine.job import Job
from pretrain.engine.sharded.generate import generate_ids
from pretrain.engine.sharded.in_step import InStep, collectives
from pretrain.errors import EngineError
from tests.parity.workers import VOCAB, Layout, build, full_weights

LENGTHS = (1, 2, 3, 5, 8, 13, 17, 21, 34, 40, 7, 7)
NEW_TOKENS = (12, 20, 1, 9, 20, 16, 20, 3, 20, 11, 20, 20)
CACHE_TOKENS = 200  # four slots for twelve prompts: slots are used again


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]


def ends_on_a_multiple_of_nine(ids: Sequence[int]) -> bool:
    return ids[-1] % 9 == 0


def plain_requests() -> list[GenerationRequest]:
    return [GenerationRequest(p, n) for p, n in zip(prompts(), NEW_TOKENS, strict=True)]


def stopping_requests() -> list[GenerationRequest]:
    """Every sixth token ends an answer, or every ninth."""
    stop_ids = frozenset(range(0, VOCAB, 6))
    return [
        GenerationRequest(p, 20, stop_ids) if i % 2 else GenerationRequest(p, 20, is_done=ends_on_a_multiple_of_nine)
        for i, p in enumerate(prompts())
    ]


def counted_passes(engine: Any) -> list[tuple[int, int]]:
    """(collectives counted by the group, collectives expected) of each pass of a generation."""
    found: list[tuple[int, int]] = []
    original = InStep.run

    def run(self: Any, model: Any, row: Any, work: Any) -> Any:
        before = self._group._get_sequence_number_for_group()
        result = original(self, model, row, work)
        found.append((self._group._get_sequence_number_for_group() - before, len(collectives(model))))
        return result

    InStep.run = run  # type: ignore[method-assign]
    try:
        engine.generate(plain_requests()[:3])
    finally:
        InStep.run = original  # type: ignore[method-assign]
    return found


def failure(engine: Any, job: Job) -> str:
    """What a rank says when the last one runs out of memory in its sixth pass."""
    passes = 0

    mlp = engine._chunks[0].decoder.layers[-1].mlp
    forward = mlp.forward

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 6:
            raise MemoryError("no memory")
        return forward(*arguments, **options)

    if job.rank == job.world_size - 1:
        mlp.forward = fail
    try:
        engine.generate(plain_requests())
    except EngineError as error:
        return str(error)
    finally:
        mlp.forward = forward
    return "none"


def refusals(engine: Any, job: Job) -> list[str]:
    """What is said to requests that differ between ranks, and to an empty prompt."""
    said = []
    for request in (GenerationRequest([1 + job.rank], 2), GenerationRequest([], 2), GenerationRequest([1], 0)):
        try:
            engine.generate([request])
            said.append("none")
        except EngineError as error:
            said.append(str(error))
    return said


def run(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Per layout: answers at the start, what goes wrong, and weights of two steps with and without generating."""
    generate_ids.__kwdefaults__["cache_tokens"] = CACHE_TOKENS
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        result: dict[str, Any] = {"weights": []}
        for generating in (False, True):
            # Far from uniform: the two likeliest tokens differ by more than fp32 noise.
            built = build(layout, job, init_std=0.4)
            engine = built.engine
            if generating:
                result["start"] = full_weights(engine)
                result["plain"] = engine.generate(plain_requests())
                result["stopped"] = engine.generate(stopping_requests())
                result["nothing"] = engine.generate([])
                result["refused"] = refusals(engine, job)
                result["passes"] = counted_passes(engine)
            built.step(0)
            if generating:
                random_state = torch.get_rng_state()
                again = engine.generate(plain_requests())
                result["random_state_kept"] = bool(torch.equal(random_state, torch.get_rng_state()))
                result["training"] = all(m.training for chunk in engine._chunks for m in chunk.modules())
                result["failed"] = failure(engine, job)
                result["same_after_failure"] = engine.generate(plain_requests()) == again
            built.step(1)
            result["weights"].append(full_weights(engine))
            engine.close()
        results.append(result)
    job.close()
    return results
