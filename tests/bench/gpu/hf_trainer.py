"""Contender: `transformers.Trainer` on LlamaForCausalLM: fp32 weights, bf16 autocast, SDPA, torch's fused AdamW.

With `liger` in the options, Liger's kernels for LLaMA replace RoPE, RMSNorm, SwiGLU and the loss with the output layer;
with `compile`, Trainer compiles the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.bench.gpu.clock import Clock
from tests.bench.gpu.task import Task

PACKAGES = ("transformers", "accelerate", "liger-kernel")


def train(task: Task, folder: Path, clock: Clock) -> dict[str, Any]:
    """Trains all steps of the task; the settings that count."""
    if task.options.get("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    on_gpu, shape = torch.cuda.is_available(), task.shape
    ids = torch.randint(0, shape.vocab_size, (task.total_steps * shape.sequences_per_step, shape.sequence_length))
    options = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=task.micro_batch_size,
        gradient_accumulation_steps=task.num_microbatches,
        max_steps=task.total_steps,
        bf16=True,
        optim="adamw_torch_fused",
        learning_rate=3e-4,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        torch_compile=bool(task.options.get("compile")),
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    with torch.device("cuda" if on_gpu else "cpu"):
        model = LlamaForCausalLM(_config(task))
    trainer = Trainer(model=model, args=options, train_dataset=[{"input_ids": one, "labels": one} for one in ids])
    clock.follow_optimizer()
    trainer.train()
    return {"precision": "fp32 weights, bf16 autocast", "optimizer": options.optim, "attention": "sdpa"}


def _config(task: Task) -> LlamaConfig:
    shape = task.shape
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        max_position_embeddings=shape.sequence_length,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
