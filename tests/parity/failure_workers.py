"""What the ranks of `test_failing_together` run: one of them fails while it scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from pretrain.engine.base import GenerationRequest, PackedRows
from pretrain.engine.job import Job
from pretrain.engine.sharded import groups, in_step, score
from pretrain.errors import DataError, EngineError
from pretrain.hooks.validate import ValidationHook
from pretrain.model.gpt import LlamaModel
from probes.tier import score_together
from tests.parity.workers import LENGTH, Layout, build, full_weights, sample

PLACES = ("before", "layer", "head")
ENTRIES = ("call", "rows", "table", "merge")
"""Where a rank fails outside the passes: before `score` begins, at its entry, and when all rows are through."""


class Fault:
    """Fails this rank once, the second time it comes to one place of its last chunk, or of the model's last piece."""

    def __init__(self, engine: Any, place: str) -> None:
        self._visits = 0
        self._place = place
        self._last = engine._chunks[-1]
        self._mlp = self._last.decoder.layers[-1].mlp
        self._originals = score.run_chunk, score.Head.add, self._mlp.forward
        original_pass, original_add, original_forward = self._originals

        def counted(model: Any, *arguments: Any) -> Any:
            is_last_piece = not isinstance(model, LlamaModel) and model.post_process
            self._visit("before", model is self._last or is_last_piece)
            return original_pass(model, *arguments)

        def add(head: Any, *arguments: Any) -> None:
            original_add(head, *arguments)
            self._visit("head")

        def forward(*arguments: Any, **options: Any) -> Any:
            self._visit("layer")
            return original_forward(*arguments, **options)

        score.run_chunk, score.Head.add, self._mlp.forward = counted, add, forward

    def _visit(self, place: str, counts: bool = True) -> None:
        self._visits += counts and place == self._place
        if counts and place == self._place and self._visits == 2:
            raise MemoryError(f"no memory in {self._place}")

    def remove(self) -> None:
        score.run_chunk, score.Head.add, self._mlp.forward = self._originals


def short_rows() -> Any:
    """Rows of two sequences: every replica has several."""
    ids = np.concatenate([sample(50_000 + i) for i in range(10)])
    ones = np.ones(len(ids), dtype=np.int32)
    return ValidationHook({"x": ids}, {"x": ones}, sequence_length=LENGTH, tokens_per_row=2 * LENGTH)._rows


def counted_collectives(engine: Any, rows: Any) -> list[tuple[int, int]]:
    """(collectives counted by the group, collectives expected) of each pass of a scoring."""
    found: list[tuple[int, int]] = []
    original = in_step.InStep.run

    def run(self: Any, model: Any, row: Any, work: Any) -> Any:
        before = self._group._get_sequence_number_for_group()
        result = original(self, model, row, work)
        found.append((self._group._get_sequence_number_for_group() - before, len(in_step.collectives(model))))
        return result

    in_step.InStep.run = run  # type: ignore[method-assign]
    try:
        engine.score(rows)
    finally:
        in_step.InStep.run = original  # type: ignore[method-assign]
    return found


def broken(*_: Any, **__: Any) -> Any:
    """In the place of something that works."""
    raise MemoryError("no memory")


@contextlib.contextmanager
def broken_entry(engine: Any, place: str) -> Iterator[None]:
    """While it is entered this rank fails at one of `ENTRIES`."""
    target, name = {
        "call": (engine, "score"),
        "rows": (score, "split_by_tokens"),
        "table": (engine._chunks[0].rotary_pos_emb, "get_emb"),
        "merge": (score.Head, "put_together"),
    }[place]
    with mock.patch.object(target, name, broken):
        yield


def entries(engine: Any, job: Job, rows: PackedRows) -> tuple[list[tuple[str, int, str]], list[bytes]]:
    """What `score_together` says where a rank fails at an entry, and what it gives afterwards."""
    run: Any = SimpleNamespace(engine=engine, job=job, state=SimpleNamespace(step=1))
    causes, scores = [], []
    for place in ENTRIES:
        for rank in range(job.world_size):
            with broken_entry(engine, place) if rank == job.rank else contextlib.nullcontext():
                causes.append((place, rank, score_together(run, rows)[1]))
            scored, _ = score_together(run, rows)
            scores.append(b"" if scored is None else scored.log_prob_P.tobytes())
    return causes, scores


def generating(engine: Any, job: Job) -> list[str]:
    """What is said when a rank's prompts are none, and when a replica's rule of when to stop fails."""

    def said(requests: list[GenerationRequest]) -> str:
        try:
            return str(engine.generate(requests))
        except EngineError as error:
            return str(error)

    sound = [GenerationRequest([1, 2, 3], 4), GenerationRequest([4, 5], 4)]
    failing = [GenerationRequest(r.prompt, 4, is_done=broken if groups.replicas()[0] == 0 else None) for r in sound]
    wrong: Any = [GenerationRequest(["a"], 4)] if job.rank == 1 else sound  # type: ignore[list-item]
    before = said(sound)
    return [said(wrong), said(failing), "same" if said(sound) == before else "differs"]


def jointly(job: Job) -> list[str]:
    """What each rank is told of work that fails on rank 1, in two ways, and of rank 0's error that cannot travel."""

    class Local(Exception):
        """Of no module, as the classes of a task's own file."""

    def told(work: Callable[[], object]) -> str:
        try:
            work()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    def fails(error: Exception) -> Callable[[], None]:
        def work() -> None:
            if job.rank == 1:
                raise error

        return work

    def once() -> None:
        raise Local("of a task")

    return [
        told(lambda: job.everywhere(fails(OSError("no disk")), what="Reading")),
        told(lambda: job.everywhere(fails(DataError("no text")), what="Reading")),
        told(lambda: job.once(once)),
        told(lambda: job.everywhere(lambda: None, what="Reading")),
    ]


def fail(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Per layout: what scoring gives before and after each failure, the errors, and weights after training on."""
    job = Job(timeout_minutes=2)
    results = []
    for layout in layouts:
        weights = []
        errors: list[tuple[str, int, str]] = []
        scores: list[bytes] = []
        entered: list[tuple[str, int, str]] = []
        wrote: list[str] = []
        for with_faults in (False, True):
            built, rows = build(layout, job), short_rows()
            engine = built.engine
            counted = counted_collectives(engine, rows)
            built.step(0)
            for place in PLACES if with_faults else ():
                for rank in range(job.world_size):
                    scores.append(engine.score(rows).log_prob_P.tobytes())
                    fault = Fault(engine, place) if rank == job.rank else None
                    try:
                        scores.append(engine.score(rows).log_prob_P.tobytes())
                        errors.append((place, rank, "none"))
                    except EngineError as error:
                        errors.append((place, rank, str(error)))
                    if fault is not None:
                        fault.remove()
                    scores.append(engine.score(rows).log_prob_P.tobytes())
            if with_faults:
                entered, more = entries(engine, job, rows)
                scores.extend(more)
                wrote = generating(engine, job)
            built.step(1)
            weights.append(full_weights(engine))
            engine.close()
        named = {"jointly": jointly(job), "errors": errors, "entries": entered, "generating": wrote}
        results.append({"weights": weights, "scores": scores, "counted": counted, **named})
    job.close()
    return results
