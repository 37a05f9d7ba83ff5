"""Contender: megatron-core as it comes without TransformerEngine: its local layer spec, DDP and optimizer, bf16.

Everything is Megatron's: `DotProductAttention`, torch's RMSNorm, its fused SwiGLU and its cross entropy over whole fp32
logits; fp32 main gradients and weights. On a CPU, Megatron is first taught to live without CUDA, as our engine is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from pretrain.engine.device import backend, prepare_device
from tests.bench.gpu.clock import Clock
from tests.bench.gpu.task import Task

PACKAGES = ("megatron-core",)


def train(task: Task, folder: Path, clock: Clock) -> dict[str, Any]:
    """Trains all steps of the task; the last loss."""
    shape, device = task.shape, prepare_device()
    dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    config = _config(task)
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.sequence_length,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    ).to(device)
    wrapped = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(grad_reduce_in_fp32=True),
        module=Float16Module(config, model),
    )
    settings = OptimizerConfig(
        optimizer="adam", lr=3e-4, weight_decay=0.1, adam_beta2=0.95, clip_grad=1.0, bf16=True,
        params_dtype=torch.bfloat16,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(settings, [wrapped], use_gloo_process_groups=False)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    schedule, batches = get_forward_backward_func(), _batches(task, device)
    for _ in range(task.total_steps):
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        losses = schedule(
            forward_step_func=_forward_step,
            data_iterator=batches,
            model=wrapped,
            num_microbatches=task.num_microbatches,
            seq_length=shape.sequence_length,
            micro_batch_size=task.micro_batch_size,
            forward_only=False,
        )
        optimizer.step()
        clock.step_ended()
    return {"loss": float(losses[-1]["loss"]), "layers": "get_gpt_layer_local_spec"}


def _config(task: Task) -> TransformerConfig:
    shape = task.shape
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        bias_activation_fusion=torch.cuda.is_available(),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        use_cpu_initialization=not torch.cuda.is_available(),
    )


def _batches(task: Task, device: torch.device) -> Iterator[torch.Tensor]:
    """Microbatches of random ids, int64 [micro_batch_size, sequence_length + 1]."""
    generator = torch.Generator().manual_seed(0)
    size = (task.micro_batch_size, task.shape.sequence_length + 1)
    while True:
        yield torch.randint(0, task.shape.vocab_size, size, generator=generator).to(device)


def _forward_step(batches: Iterator[torch.Tensor], model: Any) -> tuple[torch.Tensor, Any]:
    tokens_BT = next(batches)
    positions_BS = torch.arange(tokens_BT.shape[1] - 1, device=tokens_BT.device).expand(tokens_BT.shape[0], -1)
    losses_BS = model(tokens_BT[:, :-1].contiguous(), positions_BS, None, labels=tokens_BT[:, 1:].contiguous())
    return losses_BS, _mean


def _mean(losses_BS: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = losses_BS.float().mean()
    return loss, {"loss": loss.detach()}
