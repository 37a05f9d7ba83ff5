"""What the ranks of export tests run: train a little, save, export, and start a fresh engine from the export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.checkpoint.huggingface import export_checkpoint
from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.reference import take_reference
from pretrain.engine.base import Engine, PackedRow, PackedRows
from pretrain.engine.job import Job
from pretrain.model.spec import ModelSpec
from tests.parity.checkpoint_workers import _meta
from tests.parity.workers import LENGTH, VOCAB, Layout, build, sample

SEQUENCES = 2
STEPS = 3
INITIAL = ("one process", "TP2+SP", "PP2")
"""Layouts whose weights before training, which are the seed's, are released too."""


def tokens() -> np.ndarray:
    """int64 [SEQUENCES, LENGTH]: what full logits are compared on; not the prompts of the gate."""
    return np.stack([sample(90_000 + index)[:LENGTH] for index in range(SEQUENCES)]).astype(np.int64)


def export(payload: tuple[list[Layout], Path, Path]) -> list[dict[str, Any]]:
    """Exports under each layout, and again from an engine that was started with the export.

    Per layout: the gate's figures, and log-probabilities of all vocabulary ids by both live models.
    """
    layouts, root, tokenizer = payload
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built = build(layout, job)
        engine, spec = built.engine, built.spec
        if layout.name in INITIAL:
            _release_initial(engine, spec, job, root / layout.name / "initial", tokenizer)
        for step in range(STEPS):
            built.step(step)
        result = {"first": _export(engine, spec, job, layout, root / layout.name / "first", tokenizer)}
        engine.close()
        engine = build(layout, job, seed=4).engine
        engine.sharded_state().start_from(HuggingFaceSource(root / layout.name / "first" / "export", spec))
        result["again"] = _export(engine, spec, job, layout, root / layout.name / "again", tokenizer)
        engine.close()
        results.append(result)
    job.close()
    return results


def _release_initial(engine: Engine, spec: ModelSpec, job: Job, root: Path, tokenizer: Path) -> None:
    publisher = Publisher(root, rank=job.rank, world_size=job.world_size, barrier=job.barrier, background=False)
    path = publisher.save(0, engine.sharded_state().chunks(), _meta(spec, 0))
    if job.rank == 0:
        export_checkpoint(CheckpointReader(path), root / "export", tokenizer_model=tokenizer, dtype="bfloat16")
    job.barrier()


def _export(engine: Engine, spec: ModelSpec, job: Job, layout: Layout, root: Path, tokenizer: Path) -> dict[str, Any]:
    log_prob_BSV = engine.score(_every_id()).log_prob_P.reshape(SEQUENCES, LENGTH, VOCAB)
    reference = take_reference(engine, vocab_size=VOCAB, compute=layout.compute)
    publisher = Publisher(root, rank=job.rank, world_size=job.world_size, barrier=job.barrier, background=False)
    state = engine.sharded_state()
    meta = dataclasses.replace(_meta(spec, job.maximum(state.optimizer_step())), reference=reference)
    path = publisher.save(STEPS, state.chunks(), meta)
    parity = None
    if job.rank == 0:
        parity = export_checkpoint(CheckpointReader(path), root / "export", tokenizer_model=tokenizer).parity
    job.barrier()
    return {"log_probs": log_prob_BSV, "parity": parity, "reference": reference.log_probs}


def _every_id() -> PackedRows:
    """The sequences as blocks of one row, every vocabulary id asked of every position."""
    size = SEQUENCES * LENGTH
    row = PackedRow(
        prefix=0,
        num_blocks=SEQUENCES,
        block_length=LENGTH,
        tokens_S=tokens().astype(np.int32).reshape(-1),
        positions_S=np.tile(np.arange(LENGTH, dtype=np.int32), SEQUENCES),
        ends_S=np.repeat((np.arange(SEQUENCES, dtype=np.int32) + 1) * LENGTH, LENGTH),
        num_real_tokens=size,
        wanted_W=np.arange(size),
        pair_wanted_P=np.repeat(np.arange(size), VOCAB),
        pair_target_P=np.tile(np.arange(VOCAB), size),
        pair_id_P=np.arange(size * VOCAB),
    )
    return PackedRows(rows=[row], num_pairs=size * VOCAB, digest="0" * 64)
