"""What DeepSpeed asks of a model-parallel unit, answered from Megatron-core's process groups.

DeepSpeed shards over the data-parallel group and sums norms over the model-parallel one. It looks for further methods
by name: one called `initialize_sequence_parallel` would make it build groups of its own.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state


class ModelParallelUnit:
    """Megatron's groups under DeepSpeed's names (deepspeed.initialize, argument `mpu`); tensor and data parallel."""

    def get_model_parallel_rank(self) -> int:
        """Rank among the processes that share one copy of the weights."""
        return parallel_state.get_tensor_model_parallel_rank()

    def get_model_parallel_world_size(self) -> int:
        """Processes that share one copy of the weights."""
        return parallel_state.get_tensor_model_parallel_world_size()

    def get_model_parallel_group(self) -> Any:
        """Their group."""
        return parallel_state.get_tensor_model_parallel_group()

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_tensor_model_parallel_src_rank(self) -> int:
        """Global rank of the first of them."""
        return parallel_state.get_tensor_model_parallel_src_rank()

    def get_data_parallel_rank(self) -> int:
        """Rank among the copies of the weights."""
        return parallel_state.get_data_parallel_rank()

    def get_data_parallel_world_size(self) -> int:
        """Copies of the weights."""
        return parallel_state.get_data_parallel_world_size()

    def get_data_parallel_group(self) -> Any:
        """Group of the processes that hold the same part in different copies."""
        return parallel_state.get_data_parallel_group()

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their global ranks."""
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())

    def get_pipeline_model_parallel_rank(self) -> int:
        """0: there are no stages."""
        return parallel_state.get_pipeline_model_parallel_rank()

    def get_pipeline_model_parallel_world_size(self) -> int:
        """1: there are no stages."""
        return parallel_state.get_pipeline_model_parallel_world_size()

    def get_pipeline_model_parallel_group(self) -> Any:
        """This process alone."""
        return parallel_state.get_pipeline_model_parallel_group()
