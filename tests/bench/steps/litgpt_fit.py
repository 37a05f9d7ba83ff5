"""Contender: `litgpt.pretrain.fit` on litgpt.GPT, data in memory, no validation within a block, no saves.

Runs in an environment of its own: litgpt pins a NumPy that other packages here do not take. Model, optimizer and
logger are made as `litgpt.pretrain.main` makes them, but for `torch.compile`: that changes the model's speed, which
is not what is measured. One row per step goes to litgpt's CSV logger (its default is TensorBoard, not installed with
it).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.model import GPT
from litgpt.pretrain import fit, initialize_weights
from litgpt.utils import choose_logger, chunked_cross_entropy, instantiate_torch_optimizer
from torch.utils.data import DataLoader

from tests.bench.litgpt_model import litgpt_config
from tests.bench.result import package_versions
from tests.bench.steps.turns import BareLoop, Plan, Shape, main


def build(shape: Shape, plan: Plan, folder: Path) -> tuple[Callable[[], None], BareLoop]:
    return _framework(shape, plan, folder), _bare(shape)


def _framework(shape: Shape, plan: Plan, folder: Path) -> Callable[[], None]:
    logger = choose_logger("csv", folder / "litgpt", name="bench", log_interval=1)
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision="32-true", loggers=[logger])
    fabric.launch()
    config = litgpt_config(shape, num_query_groups=shape.num_attention_heads)
    with fabric.init_module(empty_init=True):
        model = GPT(config)
    initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    model = fabric.setup(model)
    settings = {
        "lr": shape.learning_rate,
        "betas": (shape.beta1, shape.beta2),
        "eps": shape.epsilon,
        "weight_decay": shape.weight_decay,
    }
    spec = {"class_path": "torch.optim.AdamW", "init_args": settings}
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer(spec, model.parameters(), fused=False))
    samples = shape.tokens(plan.total_steps).reshape(-1, shape.sequence_length + 1).to(torch.int32)
    train_data = fabric.setup_dataloaders(DataLoader(samples, batch_size=shape.micro_batch_size))

    def train() -> None:
        fit(
            fabric=fabric,
            devices=1,
            state={
                "model": model,
                "optimizer": optimizer,
                "train_dataloader": train_data,
                "iter_num": 0,
                "step_count": 0,
            },
            train_dataloader=train_data,
            val_dataloader=train_data,
            out_dir=folder / "litgpt",
            tokenizer_dir=None,
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=shape.global_batch_size,
                micro_batch_size=shape.micro_batch_size,
                max_tokens=plan.total_steps * shape.global_batch_size * shape.sequence_length,
                max_norm=shape.grad_clip,
                lr_warmup_steps=1,
            ),
            eval=EvalArgs(interval=10**9, final_validation=False),
        )

    return train


def _bare(shape: Shape) -> BareLoop:
    model = GPT(litgpt_config(shape, num_query_groups=shape.num_attention_heads))

    def loss_of(tokens_BT: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(model(tokens_BT[:, :-1].contiguous()), tokens_BT[:, 1:].contiguous())

    return BareLoop(model, shape, loss_of)


def versions() -> dict[str, Any]:
    return package_versions(["litgpt", "lightning"])


if __name__ == "__main__":
    main(build, versions)
