"""What the ranks of `test_failing_together` run: one of them fails while it scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.engine.job import Job
from pretrain.engine.sharded import in_step, score
from pretrain.errors import EngineError
from pretrain.hooks.validate import ValidationHook
from pretrain.model.gpt import LlamaModel
from tests.parity.workers import LENGTH, Layout, build, full_weights, sample

PLACES = ("before", "layer", "head")


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


def fail(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Per layout: what scoring gives before and after each failure, the errors, and weights after training on."""
    job = Job(timeout_minutes=2)
    results = []
    for layout in layouts:
        weights = []
        errors: list[tuple[str, int, str]] = []
        scores: list[bytes] = []
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
            built.step(1)
            weights.append(full_weights(engine))
            engine.close()
        results.append({"weights": weights, "errors": errors, "scores": scores, "counted": counted})
    job.close()
    return results
