"""What the ranks of the recipe tests run: fifty steps of a published recipe, with a small model."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.data.loader import sequence_weights
from pretrain.engine.base import Batch
from pretrain.engine.build import build_engine
from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec
from pretrain.schedule import learning_rate
from tests.parity.workers import full_weights

STEPS, WARMUP, LENGTH, BATCH, VOCAB, BOS = 50, 6, 64, 16, 997, 1
SMALL = [
    *("model.num_layers=2", "model.hidden_size=64", "model.ffn_hidden_size=172", "model.num_attention_heads=4"),
    *(f"train.steps={STEPS}", f"schedule.warmup={WARMUP} steps", "schedule.learning_rate=3.0e-3"),
    *("schedule.min_learning_rate=3.0e-4", "train.micro_batch_size=4", f"train.global_batch_size={BATCH}"),
    *(f"train.sequence_length={LENGTH}", f"tokenizer.vocab_size={VOCAB}", "precision=fp32", "engine.recompute=none"),
    "model.init_std=0.1",  # norms above and below 1, so that clipping is part of what is compared
]


def sample(index: int) -> np.ndarray:
    """int32 [LENGTH + 1]: one to six documents that begin with <s>, each an arithmetic sequence."""
    rng = np.random.default_rng(30_000 + index)
    tokens = np.empty(LENGTH + 1, np.int32)
    bounds = np.concatenate(([0], np.sort(rng.choice(np.arange(2, LENGTH), index % 6, replace=False)), [LENGTH + 1]))
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        start, stride = rng.integers(2, VOCAB), rng.integers(1, 5)
        tokens[low:high] = 2 + (start + stride * np.arange(high - low)) % (VOCAB - 2)
        tokens[low] = BOS
    return tokens


def train(payload: tuple[list[str], list[str]]) -> dict[str, Any]:
    """Fifty steps of an experiment under a layout.

    Args:
        payload: overrides of the experiment, overrides of the layout.
    """
    experiment, layout = payload
    config = compose([*experiment, *SMALL, *layout])
    job = Job(timeout_minutes=5)
    spec = ModelSpec.from_config(config.model, VOCAB)
    grid = ParallelLayout.create(config, world_size=job.world_size)
    engine = build_engine(config, spec, job.device)
    start, losses, norms, rates = full_weights(engine), [], [], []
    for step in range(STEPS):
        rate = learning_rate(
            config.schedule,
            config.batch_sizes.tokens(step),
            total_tokens=config.total_tokens,
            batch_sizes=config.batch_sizes,
        )
        result = engine.train_step(_batch(config, step, grid, grid.coordinates(job.rank).data), rate).result()
        losses.append(result.loss)
        norms.append(result.grad_norm)
        rates.append(rate)
    return {"start": start, "losses": losses, "norms": norms, "rates": rates, "weights": full_weights(engine)}


def _batch(config: RunConfig, step: int, grid: ParallelLayout, dp_rank: int) -> Batch:
    shape = (grid.num_microbatches, grid.data, grid.micro_batch_size)
    indices = step * BATCH + np.arange(BATCH).reshape(shape)[:, dp_rank]
    tokens = np.stack([[sample(int(index)) for index in row] for row in indices])
    weights = sequence_weights(tokens[..., 1:], BOS) if config.train.loss == "sequences" else None
    return Batch(tokens, step * BATCH, BATCH, {}, weights_MBS=weights)
