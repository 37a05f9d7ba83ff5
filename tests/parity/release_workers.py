"""What the ranks of the release test run: initial weights saved under a layout, or from a folder, nothing trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reference import take_reference
from pretrain.engine.job import Job
from tests.parity.checkpoint_workers import _meta
from tests.parity.workers import VOCAB, Layout, build


def save_initial(payload: tuple[Layout, Path]) -> None:
    """Saves steps 0 and 1 with their moments; the weights of both are those of the seed."""
    layout, root = payload
    job = Job(timeout_minutes=5)
    engine = build(layout, job)
    state = engine.engine.sharded_state()
    reference = take_reference(engine.engine, vocab_size=VOCAB, compute=layout.compute)
    meta = dataclasses.replace(_meta(engine.spec, 0), reference=reference, layout=engine.engine.describe())
    publisher = Publisher(root, rank=job.rank, world_size=job.world_size, barrier=job.barrier, background=False)
    for step in (0, 1):
        publisher.save(step, state.chunks(), meta)
    engine.engine.close()
    job.close()
