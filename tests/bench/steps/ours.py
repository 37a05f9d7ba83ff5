"""Contender: `pretrain.loop.fit` with the Megatron engine, as a default run on one process has it.

The loop, the loader with its read-ahead over mapped token files of two sources, metrics and signals hooks, the JSONL
record with one row per step. Hooks that act at saves only are left out, and steps measured layer by layer: they are
no part of an ordinary step. The bare loop trains a second GPTModel of the same configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from pretrain.checkpoint.calendar import save_steps
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig, RunSection, TrainSection
from pretrain.data.loader import BatchLoader
from pretrain.data.order import MixtureOrder, SampleOrder, Shares
from pretrain.data.tokens import TokenStream
from pretrain.engine.job import Job
from pretrain.engine.megatron.engine import MegatronEngine
from pretrain.flops import flops_per_token
from pretrain.hooks.base import Run
from pretrain.hooks.metrics import MetricsHook
from pretrain.hooks.signals import SignalsHook
from pretrain.loop import fit
from pretrain.model.gpt import build_chunks, transformer_config
from pretrain.model.spec import ModelSpec
from pretrain.state import RunState
from pretrain.track.sink import RunInfo
from pretrain.track.tracker import build_tracker
from tests.bench.result import package_versions
from tests.bench.steps.turns import BareLoop, Plan, Shape, main

_SOURCES = ("books", "web")
_SOURCE_TOKENS = 200_000


def build(shape: Shape, plan: Plan, folder: Path) -> tuple[Callable[[], None], BareLoop]:
    config = _configuration(shape, plan)
    spec = ModelSpec.from_config(config.model, shape.vocab_size)
    assert spec.padded_vocab_size == shape.vocab_size, "the peers have no padding rows"
    job = Job(timeout_minutes=5)
    engine = MegatronEngine(config, spec, job.device)
    return _framework(config, spec, job, engine, folder), _bare(config, spec, engine, shape)


def _configuration(shape: Shape, plan: Plan) -> RunConfig:
    config = RunConfig()
    config.run = RunSection(seed=3)
    config.train = TrainSection(
        steps=plan.total_steps,
        micro_batch_size=shape.micro_batch_size,
        global_batch_size=shape.global_batch_size,
        sequence_length=shape.sequence_length,
    )
    config.model = ModelConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_attention_heads,
    )
    config.precision.compute = "fp32"
    config.optimizer.beta1, config.optimizer.beta2 = shape.beta1, shape.beta2
    config.optimizer.epsilon = shape.epsilon
    config.optimizer.weight_decay = shape.weight_decay
    config.optimizer.grad_clip = shape.grad_clip
    config.schedule.learning_rate = shape.learning_rate
    return config


def _framework(
    config: RunConfig, spec: ModelSpec, job: Job, engine: MegatronEngine, folder: Path
) -> Callable[[], None]:
    info = RunInfo(
        directory=folder / "run",
        name="bench",
        config={},
        config_hash="0" * 16,
        total_steps=config.total_steps,
        resume_step=-1,
        domains=_SOURCES,
    )
    run = Run(
        config=config,
        state=RunState(seed=config.run.seed),
        engine=engine,
        tracker=build_tracker(config.track, info),
        info=info,
        job=job,
        checkpoints=folder / "checkpoints",
        calendar=save_steps(config.checkpoint, total_steps=config.total_steps, batch_sizes=config.batch_sizes),
    )
    flops = flops_per_token(config.model, vocab_size=spec.vocab_size, sequence_length=config.train.sequence_length)
    hooks = [
        MetricsHook(flops_per_token=flops, device_name="cpu", epoch_tokens=dict.fromkeys(_SOURCES, 1)),
        SignalsHook(),
    ]

    def train() -> None:
        with run.tracker, _loader(config, spec.vocab_size, folder).iterate(0) as batches:
            fit(run, batches, hooks)

    return train


def _loader(config: RunConfig, vocab_size: int, folder: Path) -> BatchLoader:
    random = np.random.default_rng(0)
    streams = {}
    for name in _SOURCES:
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=np.uint16)
        ids = random.integers(0, vocab_size, _SOURCE_TOKENS)
        builder.add_document(torch.from_numpy(ids), [len(ids)])
        builder.finalize(str(folder / f"{name}.idx"))
        streams[name] = TokenStream([folder / name])
    order = MixtureOrder(
        [Shares(0, dict.fromkeys(_SOURCES, Fraction(1)))],
        seed=config.run.seed,
        num_tokens={name: stream.num_tokens for name, stream in streams.items()},
        sequence_length=config.train.sequence_length,
    )
    return BatchLoader(
        SampleOrder(order), streams, batch_sizes=config.batch_sizes, micro_batch_size=config.train.micro_batch_size
    )


def _bare(config: RunConfig, spec: ModelSpec, engine: MegatronEngine, shape: Shape) -> BareLoop:
    """On the engine's process groups, which Megatron's layers need."""
    (model,) = build_chunks(config, spec, transformer_config(config, spec))
    positions_BS = torch.arange(shape.sequence_length).expand(shape.micro_batch_size, -1)

    def loss_of(tokens_BT: torch.Tensor) -> torch.Tensor:
        inputs, labels = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
        return model(inputs, positions_BS, None, labels=labels).mean()

    return BareLoop(model, shape, loss_of)


def versions() -> dict[str, Any]:
    return package_versions(["torch", "megatron-core", "numpy"])


if __name__ == "__main__":
    main(build, versions)
