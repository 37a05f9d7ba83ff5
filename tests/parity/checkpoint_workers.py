"""What the ranks of checkpoint tests run: train and save under a layout, or load under one and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pretrain.checkpoint.manifest import CheckpointMeta
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.engine.base import Engine
from pretrain.engine.job import Job
from pretrain.model.spec import ModelSpec
from tests.parity.workers import LENGTH, RATE, Layout, build, validation

SAVED = 10
STEPS = 20


def save_and_continue(payload: tuple[list[Layout], Path]) -> list[dict[str, Any]]:
    """Trains 20 steps under each layout, saving after 10; per layout: later losses and the final state."""
    layouts, root = payload
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built = build(layout, job)
        engine, spec = built.engine, built.spec
        publisher = Publisher(
            root / layout.name, rank=job.rank, world_size=job.world_size, barrier=job.barrier, background=True
        )
        losses = []
        for step in range(STEPS):
            if step == SAVED:
                state = engine.sharded_state()
                meta = _meta(spec, job.maximum(state.optimizer_step()))
                publisher.save(step, state.chunks(), meta)
            losses.append(built.step(step, RATE * (1 + step / STEPS)).loss)
        publisher.wait()
        results.append({"losses": losses[SAVED:], "state": _state(engine)})
        engine.close()
    job.close()
    return results


def load_and_continue(payload: tuple[list[Layout], list[str], Path]) -> list[dict[str, dict[str, Any]]]:
    """Loads every source under every layout, scores, and trains steps 10 to 20.

    Per layout and source: losses, state, and the log-probabilities of the weights that were loaded.
    """
    layouts, sources, root = payload
    job = Job(timeout_minutes=5)
    results, rows = [], validation()._rows
    for layout in layouts:
        built = build(layout, job)
        engine = built.engine
        found = {}
        for source in sources:  # over the used engine of the source before: nothing of it may remain
            engine.sharded_state().load(CheckpointReader(root / source / f"step_{SAVED:08d}"))
            log_probs = engine.score(rows).log_prob_P
            losses = [built.step(step, RATE * (1 + step / STEPS)).loss for step in range(SAVED, STEPS)]
            found[source] = {"losses": losses, "state": _state(engine), "log_probs": log_probs}
        results.append(found)
        engine.close()
    job.close()
    return results


def _meta(spec: ModelSpec, optimizer_step: int) -> CheckpointMeta:
    return CheckpointMeta(
        optimizer_step=optimizer_step,
        run_state={},
        config_hash="0" * 16,
        identity_hash="0" * 16,
        model=spec,
        sequence_length=LENGTH,
        tokenizer_fingerprint="none",
        layout={},
    )


def _state(engine: Engine) -> list[tuple[str, int, dict[str, np.ndarray]]]:
    """This rank's weights and moments, in the engine's own order."""
    return [
        (chunk.block.key, chunk.start, {kind: tensor.cpu().numpy().copy() for kind, tensor in chunk.tensors.items()})
        for chunk in engine.sharded_state().chunks()
    ]
