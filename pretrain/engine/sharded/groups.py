"""Megatron's process groups: made once on top of the job, taken down at the end."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from pretrain.config.run import RunConfig


def start(config: RunConfig) -> None:
    """Builds Megatron's groups. Every rank calls it once, after the job is joined."""
    parallel = config.parallel
    parallel_state.initialize_model_parallel(
        parallel.tensor,
        parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        create_gloo_process_groups=False,
    )
    # Megatron's layers fork this tracker even where nothing is drawn from it.
    model_parallel_cuda_manual_seed(config.run.seed, use_cudagraphable_rng=config.kernels.cuda_graphs)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision.tf32


def stop() -> None:
    """Takes the groups down. Every rank calls it."""
    parallel_state.destroy_model_parallel()


def replicas() -> tuple[int, int]:
    """(rank, size) among ranks that hold the same part of the weights: data times context parallel."""
    return (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
