"""Contender: `litgpt.pretrain.fit` on litgpt.GPT, compiled, as `litgpt pretrain` makes them.

`precision` in the options is Lightning's: `bf16-mixed` keeps fp32 weights, as every contender here does; `bf16-true`,
litgpt's default, keeps weights and moments in bf16 alone, which is less work and another result. On a CPU nothing is
compiled: that takes minutes and shows nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.model import GPT
from litgpt.pretrain import fit, initialize_weights
from litgpt.utils import choose_logger, instantiate_torch_optimizer
from torch.utils.data import DataLoader

from tests.bench.gpu.clock import Clock
from tests.bench.gpu.task import Task
from tests.bench.litgpt_model import litgpt_config

PACKAGES = ("litgpt", "lightning")


def train(task: Task, folder: Path, clock: Clock) -> dict[str, Any]:
    """Trains all steps of the task; the settings that count."""
    shape, precision, on_gpu = task.shape, task.options["precision"], torch.cuda.is_available()
    logger = choose_logger("csv", folder / "litgpt", name="bench", log_interval=1)
    accelerator = "cuda" if on_gpu else "cpu"
    fabric = lightning.Fabric(devices=1, accelerator=accelerator, precision=precision, loggers=[logger])
    fabric.launch()
    torch.set_float32_matmul_precision("high")  # as litgpt.pretrain does
    config = litgpt_config(shape, num_query_groups=shape.num_query_groups)
    with fabric.init_module(empty_init=True):
        model = GPT(config)
    initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    model = fabric.setup(torch.compile(model) if on_gpu else model)
    settings = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
    spec = {"class_path": "torch.optim.AdamW", "init_args": settings}
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer(spec, model.parameters(), fused=on_gpu))
    samples = torch.randint(
        0, shape.vocab_size, (task.total_steps * shape.sequences_per_step, shape.sequence_length + 1)
    )
    data = fabric.setup_dataloaders(DataLoader(samples, batch_size=task.micro_batch_size))
    clock.follow_optimizer()
    fit(
        fabric=fabric,
        devices=1,
        state={"model": model, "optimizer": optimizer, "train_dataloader": data, "iter_num": 0, "step_count": 0},
        train_dataloader=data,
        val_dataloader=data,
        out_dir=folder / "litgpt",
        tokenizer_dir=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=shape.sequences_per_step,
            micro_batch_size=task.micro_batch_size,
            max_tokens=task.total_steps * shape.tokens_per_step,
            max_norm=1.0,
            lr_warmup_steps=1,
        ),
        eval=EvalArgs(interval=10**9, final_validation=False, max_iters=1),
    )
    return {"precision": precision, "optimizer": "torch.optim.AdamW fused" if on_gpu else "torch.optim.AdamW"}
