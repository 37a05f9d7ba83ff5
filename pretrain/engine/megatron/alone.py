"""What stands in for Megatron's DDP when one process trains in fp32: autograd's own gradients.

Megatron's DDP adds every gradient into a second, zeroed buffer from a Python hook per parameter and microbatch. With
bf16 weights that buffer is what keeps gradients in fp32; alone and in fp32 it only costs: half of all that a tiny
model's step took beyond forward, backward and AdamW (tests/bench/step_overhead.py).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.data_parallel_base import _BaseDataParallel


class Alone(_BaseDataParallel):
    """The part of DDP's interface that is called when there is nobody to reduce with.

    Args:
        config: Megatron's TransformerConfig.
        module: the model chunk; its parameters are fp32.
    """

    def __init__(self, config: Any, module: torch.nn.Module) -> None:
        super().__init__(config, module)
        self.ddp_config = DistributedDataParallelConfig()
        self._parameters_list = list(module.parameters())

    def zero_grad_buffer(self) -> None:
        """Forgets the gradients of the step before."""
        for parameter in self._parameters_list:
            parameter.grad = None
