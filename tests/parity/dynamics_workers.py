"""What the ranks of the dynamics tests run: a few steps, some of them observed."""

from __future__ import annotations

from typing import Any

from pretrain.engine.job import Job
from tests.parity.workers import RATE, Layout, build, full_weights

STEPS = 4


def observe(payload: tuple[list[Layout], tuple[int, ...]]) -> list[dict[str, Any]]:
    """Trains under each layout; per layout: figures of the observed steps, losses, first and last weights."""
    layouts, observed = payload
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built = build(layout, job)
        engine = built.engine
        start = full_weights(engine)
        steps = [built.step(step, RATE * (step + 1), observe=step in observed) for step in range(STEPS)]
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
