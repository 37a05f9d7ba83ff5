"""Bytes of weights, gradients and optimizer state on one rank, as each engine shares them out. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.run import RunConfig

_FP32 = 4
_MOMENTS = 2 * _FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMemory:
    """What one rank's device holds beside activations, in bytes.

    Attributes:
        weights: what the model computes with.
        gradients: fp32 sums.
        optimizer: moments, and fp32 weights where they are another copy.
        optimizer_ranks: ranks that share the optimizer's state out.
    """

    weights: int
    gradients: int
    optimizer: int
    optimizer_ranks: int


def state_memory(config: RunConfig, *, num_parameters: int, weight_bytes: int, replicas: int) -> StateMemory:
    """State of a rank that computes with `num_parameters` weights.

    ZeRO's parts are those of Rajbhandari et al. 2020 (arXiv 1910.02054), table 1. A stage above 0 keeps fp32 weights
    of its own even where the model computes in fp32. Buffers of communication, and at stage 3 the layers that are
    whole for a moment, come on top.

    Args:
        config: engine and precision count.
        num_parameters: of this rank's tensor- and pipeline-parallel part.
        weight_bytes: of the same in the format the model computes with.
        replicas: ranks that hold the same part.
    """
    engine = config.engine
    stage = engine.zero_stage or 0
    optimizer_ranks = replicas if engine.distributed_optimizer or stage else 1
    own_master = config.precision.compute == "bf16" or stage > 0
    optimizer = (_MOMENTS + _FP32 * own_master) * -(-num_parameters // optimizer_ranks)
    return StateMemory(
        weights=0 if engine.offload_parameters != "none" else -(-weight_bytes // (replicas if stage == 3 else 1)),
        gradients=_FP32 * -(-num_parameters // (replicas if stage >= 2 else 1)),
        optimizer=0 if engine.offload_optimizer != "none" else optimizer,
        optimizer_ranks=optimizer_ranks,
    )
