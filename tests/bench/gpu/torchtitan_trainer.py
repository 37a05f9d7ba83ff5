"""Contender: torchtitan's Trainer on one GPU with its LLaMA 3, every block and the loss compiled, no recomputation.

Written for torchtitan 0.2.2, the release for this torch: alone, it keeps fp32 weights and computes under bf16
autocast. Its own pieces are taken throughout but for the data, which is random ids in memory.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

if not torch.cuda.is_available():  # only to see that everything runs: what it asks torch for when it is imported
    _ANSWERS = {
        "get_device_name.return_value": "cpu",
        "get_device_properties.return_value.total_memory": 2**30,
        "memory_stats.return_value": defaultdict(int),
    }
    torch._utils._get_available_device_type = lambda: "cpu"
    torch._utils._get_device_module = lambda _: mock.MagicMock(**_ANSWERS)

import torchtitan.protocols.train_spec as train_specs  # noqa: E402
from torchtitan.config import JobConfig  # noqa: E402
from torchtitan.models.llama3 import TransformerModelArgs, get_train_spec  # noqa: E402
from torchtitan.train import Trainer  # noqa: E402

from tests.bench.gpu.clock import Clock  # noqa: E402
from tests.bench.gpu.task import Task  # noqa: E402

PACKAGES = ("torchtitan", "torchdata")


def train(task: Task, folder: Path, clock: Clock) -> dict[str, Any]:
    """Trains all steps of the task; the settings that count."""
    os.environ.update(
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591"}
    )
    on_gpu = torch.cuda.is_available()
    train_specs.register_train_spec("bench", _spec(task))
    trainer = Trainer(_config(task, folder, on_gpu=on_gpu))
    data = trainer.batch_generator(_data(task))
    for _ in range(task.total_steps):
        trainer.step += 1
        trainer.gc_handler.run(trainer.step)
        trainer.train_step(data)
        clock.step_ended()
    return {"precision": "fp32 weights, bf16 autocast", "compile": "blocks and loss", "recompute": "none"}


def _spec(task: Task) -> train_specs.TrainSpec:
    shape = task.shape
    model = TransformerModelArgs(
        dim=shape.hidden_size,
        n_layers=shape.num_layers,
        n_heads=shape.num_attention_heads,
        n_kv_heads=shape.num_query_groups,
        vocab_size=shape.vocab_size,
        multiple_of=shape.ffn_hidden_size,  # it rounds 8/3 of the width up to a multiple of this
        max_seq_len=shape.sequence_length,
        attn_type="sdpa",
    )
    return replace(
        get_train_spec(),
        model_args={"bench": model},
        build_dataloader_fn=None,
        build_tokenizer_fn=None,
        build_validator_fn=None,
        state_dict_adapter=None,
    )


def _config(task: Task, folder: Path, *, on_gpu: bool) -> JobConfig:
    config = JobConfig()
    config.job.dump_folder = str(folder / "titan")
    config.model.name, config.model.flavor = "bench", "bench"
    config.optimizer.implementation = "fused" if on_gpu else "for-loop"
    config.training.local_batch_size = task.micro_batch_size
    config.training.global_batch_size = task.shape.sequences_per_step
    config.training.seq_len = task.shape.sequence_length
    config.training.steps = task.total_steps
    config.activation_checkpoint.mode = "none"
    config.compile.enable = on_gpu  # on a CPU it takes minutes and shows nothing
    config.compile.components = ["model", "loss"]
    return config


def _data(task: Task) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    size = (task.micro_batch_size, task.shape.sequence_length + 1)
    while True:
        ids = torch.randint(0, task.shape.vocab_size, size, generator=generator)
        yield {"input": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous()
