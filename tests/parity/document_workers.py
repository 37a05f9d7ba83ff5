"""What the ranks of the document-mask tests run: windows of several documents, under one layout after another."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.engine.base import Batch
from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from tests.parity.workers import BATCH, LENGTH, RATE, VOCAB, Layout, build, full_weights

STEPS = 4


def window(index: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [LENGTH + 1] of one to six documents, each an arithmetic sequence, and int32 [LENGTH] of their ends."""
    rng = np.random.default_rng(70_000 + index)
    inner = np.sort(rng.choice(np.arange(1, LENGTH), size=index % 6, replace=False))
    bounds = np.concatenate(([0], inner, [LENGTH]))
    tokens, ends = np.empty(LENGTH + 1, dtype=np.int32), np.empty(LENGTH, dtype=np.int32)
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        start, stride = rng.integers(0, VOCAB), rng.integers(1, 5)
        tokens[low : high + 1] = (start + stride * np.arange(high + 1 - low)) % VOCAB
        ends[low:high] = high
    return tokens, ends


def batch(step: int, layout: ParallelLayout, dp_rank: int) -> Batch:
    """A rank's share of a step."""
    shape = (layout.num_microbatches, layout.data, layout.micro_batch_size)
    indices = step * BATCH + np.arange(BATCH).reshape(shape)[:, dp_rank]
    tokens = np.stack([[window(int(i))[0] for i in row] for row in indices])
    ends = np.stack([[window(int(i))[1] for i in row] for row in indices])
    return Batch(tokens, first_sample=step * BATCH, num_samples=BATCH, source_tokens={}, ends_MBS=ends)


def train(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Trains under each layout in turn; per layout: losses, gradient norms, first and last weights, dynamics."""
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built = build(layout, job)
        start = full_weights(built.engine)
        steps = [
            built.engine.train_step(batch(step, built.grid, built.dp_rank), RATE, observe=step == STEPS - 1).result()
            for step in range(STEPS)
        ]
        results.append(
            {
                "name": layout.name,
                "start": start,
                "losses": [step.loss for step in steps],
                "norms": [step.grad_norm for step in steps],
                "z_losses": [step.z_loss for step in steps],
                "dynamics": steps[-1].dynamics,
                "weights": full_weights(built.engine),
            }
        )
        built.engine.close()
    job.close()
    return results
