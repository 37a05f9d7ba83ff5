"""Contender: `transformers.Trainer` on LlamaForCausalLM, data in memory, no evaluation, no saves.

Everything is Trainer's default but the size of the step, the optimizer's constants and `optim="adamw_torch"` (its
default is the fused kernel, which no other contender uses). It logs to its own history and to standard output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.bench.result import package_versions
from tests.bench.steps.turns import BareLoop, Plan, Shape, main


def build(shape: Shape, plan: Plan, folder: Path) -> tuple[Callable[[], None], BareLoop]:
    logging_steps = json.loads((folder / "job.json").read_text())["hf_logging_steps"]
    return _framework(shape, plan, folder, logging_steps), _bare(shape)


def _model(shape: Shape) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.ffn_hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_attention_heads,
            max_position_embeddings=shape.sequence_length,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )


def _framework(shape: Shape, plan: Plan, folder: Path, logging_steps: int) -> Callable[[], None]:
    ids = shape.tokens(plan.total_steps)[..., :-1].reshape(-1, shape.sequence_length)
    samples = [{"input_ids": one, "labels": one} for one in ids]
    options = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=shape.micro_batch_size,
        gradient_accumulation_steps=shape.num_microbatches,
        max_steps=plan.total_steps,
        optim="adamw_torch",
        learning_rate=shape.learning_rate,
        adam_beta1=shape.beta1,
        adam_beta2=shape.beta2,
        adam_epsilon=shape.epsilon,
        weight_decay=shape.weight_decay,
        max_grad_norm=shape.grad_clip,
        logging_steps=logging_steps,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=_model(shape), args=options, train_dataset=samples)

    def train() -> None:
        trainer.train()

    return train


def _bare(shape: Shape) -> BareLoop:
    model = _model(shape)

    def loss_of(tokens_BT: torch.Tensor) -> torch.Tensor:
        ids_BS = tokens_BT[:, :-1]
        return model(input_ids=ids_BS, labels=ids_BS).loss

    return BareLoop(model, shape, loss_of)


def versions() -> dict[str, Any]:
    return package_versions(["transformers", "accelerate"])


if __name__ == "__main__":
    main(build, versions)
