"""State per rank against ZeRO's formulas (Rajbhandari et al. 2020, figure 1), with gradients summed in fp32."""

from __future__ import annotations

import dataclasses

import pytest

from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.engine.build import footprint, planning
from pretrain.engine.footprint import Footprint
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec

PARAMETERS, REPLICAS = 6_738_415_616, 64  # a model of about the paper's size; ranks that divide it evenly


def composed(engine: str, *overrides: str) -> tuple[RunConfig, ParallelLayout]:
    config = compose(["experiment=amber_7b", f"engine={engine}", "train.global_batch_size=2560", *overrides])
    return config, ParallelLayout.create(config, world_size=REPLICAS)


def of(engine: str, *overrides: str) -> Footprint:
    config, layout = composed(engine, *overrides)
    return footprint(config, layout, ModelSpec.from_config(config.model, 32_000), stage=0)


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
    assert found.optimizer_ranks == REPLICAS


def test_what_is_offloaded_is_not_on_the_device() -> None:
    found = of("deepspeed_zero3", "engine.offload_optimizer=cpu", "engine.offload_parameters=cpu")
    assert (found.weights, found.optimizer) == (0, 0) and found.gradients > 0


def test_without_sharding_every_rank_holds_all() -> None:
    plain = ("megatron", "engine.distributed_optimizer=false", "engine.overlap_param_gather=false")
    assert (of(*plain).optimizer, of(*plain).optimizer_ranks) == (12 * PARAMETERS, 1)


def test_fp32_weights_are_their_own_master_unless_zero_flattens_them() -> None:
    plain = of("deepspeed_zero0", "precision=fp32")
    flat = of("deepspeed_zero1", "precision=fp32")
    assert plain.optimizer == 8 * PARAMETERS
    assert flat.optimizer == 12 * PARAMETERS // REPLICAS


@pytest.mark.parametrize(
    ("engine", "shared"),
    [
        ("megatron", "optimizer"),
        ("deepspeed_zero0", "none"),
        ("deepspeed_zero1", "optimizer"),
        ("deepspeed_zero2", "gradients"),
        ("deepspeed_zero3", "parameters"),
    ],
)
def test_an_engine_says_what_its_ranks_share_and_whose_group_it_is(engine: str, shared: str) -> None:
    config, _ = composed(engine)
    assert of(engine).shared == shared
    known, usual = planning(config.engine), dataclasses.replace(config.engine, recompute="none")
    assert known.group(config.engine) == engine and known.as_group(config.engine) == usual


def test_adam_takes_one_pass_where_it_is_fused() -> None:
    assert of("megatron").fused_update and of("deepspeed_zero1").fused_update
    assert not of("megatron", "kernels=plain").fused_update
    assert not of("deepspeed_zero1", "engine.adam=torch").fused_update
    # torch's AdamW holds the roots of all second moments at once.
    assert of("megatron", "kernels=plain").update == 4 * PARAMETERS // REPLICAS and of("megatron").update == 0
