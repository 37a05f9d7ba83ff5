"""What the ranks of parity tests run: a small model under one layout after another, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pretrain.config.model import ModelConfig
from pretrain.config.run import ParallelSection, RunConfig, RunSection, TrainSection
from pretrain.engine.base import Batch, Engine, StepResult
from pretrain.engine.build import build_engine, check_capabilities
from pretrain.engine.job import Job
from pretrain.engine.layout import ParallelLayout
from pretrain.hooks.validate import ValidationHook
from pretrain.model.spec import ModelSpec

VOCAB = 997  # padded to 1,024: the padding must not matter
LENGTH = 64
BATCH = 16
RATE = 1e-3
EPSILON = 1e-6  # Adam turns fp32 noise in gradients near its epsilon into whole updates: above that noise here
CLIP = 0.5  # below the first norms, so that clipping is part of what is compared
FUSED = {"layers": "fused", "loss": "chunked", "weight_gradients": "accumulated", "optimizer": "fused"}
"""What `kernels=auto` takes on a GPU, uncompiled."""
FUSED_BY_DEEPSPEED = {"layers": "fused", "loss": "chunked"}
"""The same under DeepSpeed."""


@dataclass
class Layout:
    """One way to run the model; what is not named has the default of the product."""

    name: str
    tensor: int = 1
    sequence: bool = False
    micro_batch_size: int = 2
    compute: str = "fp32"
    tf32: bool = False
    distributed_optimizer: bool = True
    overlap: bool = True
    tie_embeddings: bool = False
    decay: str = "all"
    recompute: str = "none"
    z_loss: float = 0.0
    transformer_engine: bool = False
    score: bool = False
    zero: int | None = None  # DeepSpeed's stage; None is Megatron
    offload: str = ""  # what DeepSpeed keeps on the CPU: `optimizer`, `optimizer and parameters`
    adam: str = "torch"  # under DeepSpeed
    kernels: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def configuration(layout: Layout) -> RunConfig:
    config = RunConfig()
    config.run = RunSection(seed=3)
    config.train = TrainSection(
        steps=20, micro_batch_size=layout.micro_batch_size, global_batch_size=BATCH, sequence_length=LENGTH
    )
    config.parallel = ParallelSection(tensor=layout.tensor, sequence=layout.sequence, **layout.extra)
    config.model = ModelConfig(
        num_layers=4,
        hidden_size=64,
        ffn_hidden_size=176,
        num_attention_heads=4,
        num_query_groups=2,
        tie_embeddings=layout.tie_embeddings,
        init_std=0.05,
    )
    config.precision.compute = layout.compute
    config.precision.tf32 = layout.tf32
    config.engine.distributed_optimizer = layout.distributed_optimizer
    config.engine.overlap_grad_reduce = layout.overlap
    config.engine.overlap_param_gather = layout.overlap and layout.distributed_optimizer
    config.engine.bucket_size = 20_000 if layout.overlap else None  # several buckets, or nothing overlaps
    for name, value in layout.kernels.items():
        setattr(config.kernels, name, value)
    config.optimizer.grad_clip = CLIP
    config.optimizer.epsilon = EPSILON
    config.optimizer.decay = layout.decay
    config.optimizer.z_loss = layout.z_loss
    config.engine.recompute = layout.recompute
    config.engine.transformer_engine = layout.transformer_engine
    if layout.zero is not None:
        config.engine.name, config.engine.zero_stage = "deepspeed", layout.zero
        config.engine.distributed_optimizer = config.engine.overlap_param_gather = False
        config.engine.overlap_grad_reduce = layout.overlap and layout.zero > 0
        if layout.zero == 0:
            config.engine.bucket_size = None
        config.engine.offload_optimizer = "cpu" if "optimizer" in layout.offload else "none"
        config.engine.adam = layout.adam
        config.engine.offload_parameters = "cpu" if "parameters" in layout.offload else "none"
        # Parameters below 100,000 elements, all of this model's, would stay whole at stage 3.
        config.engine.deepspeed = (
            {"zero_optimization": {"stage3_param_persistence_threshold": 100}} if layout.zero == 3 else {}
        )
    return config


@dataclass
class Built:
    """An engine under a layout, and this rank's place in it."""

    engine: Engine
    spec: ModelSpec
    grid: ParallelLayout
    dp_rank: int

    def step(self, number: int, rate: float = RATE, *, observe: bool = False) -> StepResult:
        """Trains on the batch of a step."""
        return self.engine.train_step(batch(number, self.grid, self.dp_rank), rate, observe=observe).result()


def build(layout: Layout, job: Job, *, seed: int = 3, init_std: float = 0.05) -> Built:
    """The engine that a user's configuration of this layout gives; every rank calls it."""
    config = configuration(layout)
    config.run.seed, config.model.init_std = seed, init_std
    problems = list(check_capabilities(config, world_size=job.world_size))
    assert not problems, problems
    spec = ModelSpec.from_config(config.model, VOCAB)
    grid = ParallelLayout.create(config, world_size=job.world_size)
    return Built(build_engine(config, spec, job.device), spec, grid, grid.coordinates(job.rank).data)


def sample(index: int) -> np.ndarray:
    """int32 [LENGTH + 1]: arithmetic sequences, which a small model learns."""
    rng = np.random.default_rng(10_000 + index)
    start, stride = rng.integers(0, VOCAB), rng.integers(1, 5)
    return ((start + stride * np.arange(LENGTH + 1)) % VOCAB).astype(np.int32)


def validation() -> ValidationHook:
    ids = np.concatenate([sample(50_000 + i) for i in range(10)])
    ones = np.ones(len(ids), dtype=np.int32)
    return ValidationHook({"held_out": ids}, {"held_out": ones}, sequence_length=LENGTH, tokens_per_row=256)


def batch(step: int, layout: ParallelLayout, dp_rank: int) -> Batch:
    shape = (layout.num_microbatches, layout.data, layout.micro_batch_size)
    indices = step * BATCH + np.arange(BATCH).reshape(shape)[:, dp_rank]
    tokens = np.stack([[sample(int(i)) for i in row] for row in indices])
    return Batch(tokens, first_sample=step * BATCH, num_samples=BATCH, source_tokens={})


def full_weights(engine: Engine) -> list[tuple[str, tuple[int, ...], tuple[int, ...], int, np.ndarray]]:
    """This rank's fp32 weights, to be put together by `assemble`."""
    return [
        (
            c.block.key,
            c.block.global_shape,
            c.block.offset + c.block.shape,
            c.start,
            c.tensors["param"].cpu().numpy().copy(),
        )
        for c in engine.sharded_state().chunks()
    ]


def assemble(parts: list[Any]) -> dict[str, torch.Tensor]:
    """Whole tensors from the chunks of all ranks; independent of the product's own reader."""
    tensors: dict[str, np.ndarray] = {}
    for key, global_shape, place, start, values in parts:
        whole = tensors.setdefault(key, np.full(global_shape, np.nan, dtype=np.float32))
        axes = len(global_shape)
        offset, shape = place[:axes], place[axes:]
        flat = np.arange(start, start + len(values))
        index = np.unravel_index(flat, shape)
        whole[tuple(i + o for i, o in zip(index, offset, strict=True))] = values
    return {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}


def train(layouts: list[Layout], steps: int = 20) -> list[dict[str, Any]]:
    """Trains under each layout in turn; per layout: losses, gradient norms, weights, validation losses."""
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built, hook = build(layout, job), validation()
        engine = built.engine
        start = full_weights(engine) if job.world_size == 1 else None
        losses, norms, z_losses, held_out = [], [], [], []
        for step in range(steps):
            if layout.score and step % 5 == 0:
                held_out.append(-engine.score(hook._rows).log_prob_P.mean())
            result = built.step(step)
            losses.append(result.loss)
            norms.append(result.grad_norm)
            z_losses.append(result.z_loss)
        held_out.append(-engine.score(hook._rows).log_prob_P.mean())
        results.append(
            {
                "name": layout.name,
                "losses": losses,
                "norms": norms,
                "z_losses": z_losses,
                "start": start,
                "weights": full_weights(engine),
                "validation": held_out,
            }
        )
        engine.close()
    job.close()
    return results
