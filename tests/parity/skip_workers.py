"""What the ranks of `test_skipped_steps` run: a step whose loss and gradient are not finite."""

from __future__ import annotations

from typing import Any

from pretrain.engine.job import Job
from tests.parity.workers import Layout, build, full_weights


def overshoot(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Per layout: what the step after an absurd one reports, and the state before and after it."""
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built = build(layout, job)
        results.append({"name": layout.name, "usual": [built.step(0).skipped, built.step(1, 1e30).skipped]})
        for moment in ("before", "after"):
            if moment == "after":
                step = built.step(2)
                results[-1] |= {"skipped": step.skipped, "loss": step.loss, "norm": step.grad_norm}
            state = built.engine.sharded_state()
            results[-1][moment] = (state.optimizer_step(), [part[-1] for part in full_weights(built.engine)])
        built.engine.close()
    job.close()
    return results
