"""What the ranks of the dynamics tests run: a few steps, some of them observed."""

from __future__ import annotations

from typing import Any

from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from pretrain.engine.megatron.engine import MegatronEngine
from pretrain.model.spec import ModelSpec
from tests.parity.workers import RATE, VOCAB, Layout, batch, configuration, full_weights

STEPS = 4


def observe(payload: tuple[list[Layout], tuple[int, ...]]) -> list[dict[str, Any]]:
    """Trains under each layout; per layout: figures of the observed steps, losses, first and last weights."""
    layouts, observed = payload
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        config = configuration(layout)
        spec = ModelSpec.from_config(config.model, VOCAB)
        grid = ParallelLayout.create(config, world_size=job.world_size)
        engine = MegatronEngine(config, spec, job.device)
        start = full_weights(engine)
        steps = [
            engine.train_step(
                batch(step, grid, grid.coordinates(job.rank).data), RATE * (step + 1), observe=step in observed
            )
            for step in range(STEPS)
        ]
        results.append(
            {
                "name": layout.name,
                "dynamics": [step.dynamics for step in steps],
                "losses": [step.loss for step in steps],
                "start": start,
                "weights": full_weights(engine),
            }
        )
        engine.close()
    job.close()
    return results
