"""What the ranks of `test_failing_together` run: one of them fails while it scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from pretrain.engine.megatron import in_step, score
from pretrain.engine.megatron.engine import MegatronEngine
from pretrain.errors import EngineError
from pretrain.hooks.validate import ValidationHook
from pretrain.model.spec import ModelSpec
from tests.parity.workers import LENGTH, RATE, VOCAB, Layout, batch, configuration, full_weights, sample

PLACES = ("before", "layer", "head")


class Fault:
    """Fails this rank once, at one place of the second pass through its last chunk."""

    def __init__(self, engine: MegatronEngine, place: str) -> None:
        self._passes = 0
        self._place = place
        model = engine._chunks[-1]
        self._last = model
        self._restore: list[Any] = []
        original_pass, original_add = score._pass, score.Head.add

        def counted(model: Any, *arguments: Any) -> Any:
            self._passes += model is self._last
            self._fail_if(model is self._last and place == "before")
            return original_pass(model, *arguments)

        def add(head: Any, model: Any, *arguments: Any) -> None:
            original_add(head, model, *arguments)
            self._fail_if(place == "head")

        score._pass, score.Head.add = counted, add
        hook = model.decoder.layers[-1].mlp.register_forward_pre_hook(lambda *_: self._fail_if(place == "layer"))
        self._restore = [original_pass, original_add, hook]

    def _fail_if(self, here: bool) -> None:
        if here and self._passes == 2:
            raise MemoryError(f"no memory in {self._place}")

    def remove(self) -> None:
        score._pass, score.Head.add, hook = self._restore
        hook.remove()


def short_rows() -> Any:
    """Rows of two sequences: every replica has several."""
    ids = np.concatenate([sample(50_000 + i) for i in range(10)])
    ones = np.ones(len(ids), dtype=np.int32)
    return ValidationHook({"x": ids}, {"x": ones}, sequence_length=LENGTH, tokens_per_row=2 * LENGTH)._rows


def counted_collectives(engine: MegatronEngine, rows: Any) -> list[tuple[int, int]]:
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
        config = configuration(layout)
        spec = ModelSpec.from_config(config.model, VOCAB)
        grid = ParallelLayout.create(config, world_size=job.world_size)
        weights = []
        errors: list[tuple[str, int, str]] = []
        scores: list[bytes] = []
        for with_faults in (False, True):
            engine = MegatronEngine(config, spec, job.device)
            rows, dp_rank = short_rows(), grid.coordinates(job.rank).data
            counted = counted_collectives(engine, rows)
            engine.train_step(batch(0, grid, dp_rank), RATE)
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
            engine.train_step(batch(1, grid, dp_rank), RATE)
            weights.append(full_weights(engine))
            engine.close()
        results.append({"weights": weights, "errors": errors, "scores": scores, "counted": counted})
    job.close()
    return results
