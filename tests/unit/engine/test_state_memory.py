"""State per rank against ZeRO's formulas (Rajbhandari et al. 2020, figure 1), with gradients summed in fp32."""

from __future__ import annotations

import pytest

from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.engine.layout import ParallelLayout
from pretrain.engine.state_memory import StateMemory, optimizer_ranks, state_memory

PARAMETERS, REPLICAS = 7_500_000_000, 60  # the paper's model; a size that divides evenly


def composed(engine: str, *overrides: str) -> tuple[RunConfig, ParallelLayout]:
    config = compose(["experiment=amber_7b", f"engine={engine}", "train.global_batch_size=2400", *overrides])
    return config, ParallelLayout.create(config, world_size=REPLICAS)


def of(engine: str, *overrides: str) -> StateMemory:
    config, layout = composed(engine, *overrides)
    return state_memory(config, layout, num_parameters=PARAMETERS)


@pytest.mark.parametrize(
    ("engine", "bytes_per_parameter"),
    [
        ("megatron", 2 + 4 + 12 / REPLICAS),
        ("deepspeed_zero1", 2 + 4 + 12 / REPLICAS),
        ("deepspeed_zero2", 2 + (4 + 12) / REPLICAS),
        ("deepspeed_zero3", (2 + 4 + 12) / REPLICAS),
    ],
)
def test_each_stage_shares_out_one_kind_of_state_more(engine: str, bytes_per_parameter: float) -> None:
    found = of(engine)
    assert found.weights + found.gradients + found.optimizer == pytest.approx(bytes_per_parameter * PARAMETERS)
    assert optimizer_ranks(*composed(engine)) == REPLICAS


def test_what_is_offloaded_is_not_on_the_device() -> None:
    found = of("deepspeed_zero3", "engine.offload_optimizer=cpu", "engine.offload_parameters=cpu")
    assert (found.weights, found.optimizer) == (0, 0) and found.gradients > 0


def test_without_sharding_every_rank_holds_all() -> None:
    plain = ("megatron", "engine.distributed_optimizer=false", "engine.overlap_param_gather=false")
    assert of(*plain).optimizer == 12 * PARAMETERS and optimizer_ranks(*composed(*plain)) == 1


def test_fp32_weights_are_their_own_master_unless_zero_flattens_them() -> None:
    plain = of("deepspeed_zero0", "precision=fp32")
    flat = of("deepspeed_zero1", "precision=fp32")
    assert plain.optimizer == 8 * PARAMETERS
    assert flat.optimizer == 12 * PARAMETERS // REPLICAS
