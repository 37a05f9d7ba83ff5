"""What a rank of long comparisons between kernels runs."""

from __future__ import annotations

from pretrain.engine.job import Job
from tests.parity.workers import Layout, build

STEPS = 200


def losses(layouts: list[Layout]) -> list[list[float]]:
    """The losses of each layout in turn, from the same weights on the same batches."""
    job = Job(timeout_minutes=5)
    found = []
    for layout in layouts:
        built = build(layout, job)
        found.append([built.step(number).loss for number in range(STEPS)])
        built.engine.close()
    return found
