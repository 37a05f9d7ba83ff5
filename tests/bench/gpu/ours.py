"""Contender: the engine of a run, from its configuration, fed with batches as the loader gives them.

Weights are drawn on the device: a run draws them row by row on the host, the same in every layout, which takes a
minute at 7B and has no influence on speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pretrain.checkpoint.blocks import Block
from pretrain.config.load import compose
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.engine.base import Batch
from pretrain.engine.build import build_engine, check_capabilities, check_machine
from pretrain.engine.job import Job
from pretrain.engine.kernels import choose
from pretrain.errors import ConfigError
from pretrain.model.spec import ModelSpec
from tests.bench.gpu.clock import Clock
from tests.bench.gpu.task import Task

PACKAGES = ("megatron-core",)


def train(task: Task, folder: Path, clock: Clock) -> dict[str, Any]:
    """Trains all steps of the task; what was chosen, and the last loss."""
    config = configuration(task)
    problems = [*check_capabilities(config, world_size=1), *check_machine(config)]
    if problems:
        raise ConfigError(problems)
    device = Job(timeout_minutes=5).device
    spec = ModelSpec.from_config(config.model, task.shape.vocab_size)
    with weights_drawn_on_device():
        engine = build_engine(config, spec, device)
    batches = [_batch(task, seed) for seed in range(4)]
    begun = None
    for step in range(task.total_steps):
        before, begun = begun, engine.train_step(batches[step % len(batches)], config.schedule.learning_rate)
        clock.step_ended()
        if before is not None:
            before.result()  # a step late, as the loop reads it
    assert begun is not None, "a task has steps"
    kernels = choose(config, device)
    told = {"loss": float(begun.result().loss), "kernels": kernels.describe(), "reasons": kernels.reasons}
    engine.close()
    return told


def configuration(task: Task) -> RunConfig:
    """The shipped configuration with the sizes of the task and its overrides."""
    sizes = [f"model.{name}={value}" for name, value in _sizes(task.shape.model()).items()]
    return compose(
        [
            *sizes,
            f"tokenizer.vocab_size={task.shape.vocab_size}",
            f"train.steps={task.total_steps}",
            f"train.sequence_length={task.shape.sequence_length}",
            f"train.micro_batch_size={task.micro_batch_size}",
            f"train.global_batch_size={task.shape.sequences_per_step}",
            *(f"{key}={value}" for key, value in task.options.items()),
        ]
    )


def weights_drawn_on_device() -> Any:
    """Replaces the draw of initial weights in engines that are built meanwhile."""
    return mock.patch("pretrain.engine.megatron.engine.initialize", _draw)


@torch.no_grad()
def _draw(blocks: Mapping[torch.nn.Parameter, Sequence[Block]], model: ModelConfig, *, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in blocks:
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, model.init_std)


def _sizes(model: ModelConfig) -> dict[str, Any]:
    names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
    return {name: getattr(model, name) for name in names}


def _batch(task: Task, seed: int) -> Batch:
    shape = task.shape
    size = (task.num_microbatches, task.micro_batch_size, shape.sequence_length + 1)
    tokens = np.random.default_rng(seed).integers(0, shape.vocab_size, size, dtype=np.int32)
    return Batch(tokens_MBT=tokens, first_sample=0, num_samples=shape.sequences_per_step, source_tokens={})
