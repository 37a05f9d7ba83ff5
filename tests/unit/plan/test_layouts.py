"""Suggested layouts: that each can run and fits, that its overrides give it, and that nothing faster was left out."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from pretrain.config.checks import check
from pretrain.config.load import compose
from pretrain.config.run import BatchStage, RunConfig
from pretrain.engine.build import check_capabilities
from pretrain.engine.layout import ParallelLayout
from pretrain.plan.layouts import LayoutOption, device_bytes, suggest
from pretrain.plan.memory import fullest
from pretrain.plan.throughput import predict, workload_of
from tests.unit.plan.cases import spec_of

RUNS = [
    (["experiment=amber_7b", "cluster=a100_80gb"], 224),
    (["experiment=amber_7b", "cluster=a100_40gb", "cluster.nodes=2", "train.global_batch_size=2048"], 8),
    (["experiment=k2_65b", "cluster=h100"], 480),
    (["experiment=amber_7b", "engine=deepspeed_zero3", "engine.offload_optimizer=cpu", "cluster=h100"], 16),
]


@functools.cache
def _given(run: int) -> RunConfig:
    return compose(RUNS[run][0])


def _suggest(config: RunConfig, world_size: int, count: int = 8) -> list[LayoutOption]:
    return suggest(config, spec_of(config), world_size=world_size, count=count)


@pytest.mark.parametrize(
    ("run", "count"),
    [(0, 1), (3, 1), *(pytest.param(run, 3, marks=pytest.mark.slow) for run in range(len(RUNS)))],
)
def test_pasted_overrides_give_a_run_that_starts_fits_and_is_as_fast_as_said(run: int, count: int) -> None:
    overrides, world_size = RUNS[run]
    options = _suggest(_given(run), world_size, count=count)
    assert len(options) == count
    speeds = [option.tokens_per_second for option in options]
    assert speeds == sorted(speeds, reverse=True)
    for option in options:
        pasted = compose([*overrides, *option.overrides])
        check(pasted, world_size, files=False)
        assert not check_capabilities(pasted, world_size=world_size)
        layout, spec = ParallelLayout.create(pasted, world_size=world_size), spec_of(pasted)
        assert layout == option.layout
        memory = fullest(pasted, spec, layout)
        assert memory == option.memory_bytes and memory.total <= (device_bytes(pasted) or 0)
        assert predict(workload_of(pasted, spec, layout), pasted.cluster).tokens_per_second == option.tokens_per_second


def test_no_layout_drawn_by_hand_is_faster_than_the_first() -> None:
    config = _given(0)
    best = _suggest(config, 224)[0]
    for tensor, pipeline, micro, recompute in [
        (1, 1, 1, "none"),
        (1, 1, 10, "full"),
        (2, 1, 5, "none"),
        (4, 1, 10, "none"),
        (2, 2, 4, "none"),
        (1, 4, 2, "full"),
    ]:
        given = dataclasses.replace(
            config,
            parallel=dataclasses.replace(config.parallel, tensor=tensor, pipeline=pipeline),
            train=dataclasses.replace(config.train, micro_batch_size=micro),
            engine=dataclasses.replace(config.engine, recompute=recompute),
        )
        layout, spec = ParallelLayout.create(given, world_size=224), spec_of(given)
        if fullest(given, spec, layout).total <= (device_bytes(given) or 0):
            speed = predict(workload_of(given, spec, layout), given.cluster).tokens_per_second
            assert speed <= best.tokens_per_second


def test_the_65b_on_one_machine_fits_nowhere() -> None:
    config = dataclasses.replace(_given(2), train=dataclasses.replace(_given(2).train, global_batch_size=2048))
    assert _suggest(config, 8) == []


def test_a_measured_speed_scales_all_predictions() -> None:
    config = _given(0)
    layout, spec = ParallelLayout.create(config, world_size=224), spec_of(config)
    modelled = predict(workload_of(config, spec, layout), config.cluster).tokens_per_second
    half = dataclasses.replace(config.cluster, tokens_per_second_per_device=modelled / 224 / 2)
    before, after = (_suggest(dataclasses.replace(config, cluster=one), 224) for one in (config.cluster, half))
    assert [option.overrides for option in before] == [option.overrides for option in after]
    for first, second in zip(before, after, strict=True):
        assert second.tokens_per_second == pytest.approx(first.tokens_per_second / 2)


def test_the_micro_batch_fits_every_stage_of_a_ramp() -> None:
    given = compose(
        ["experiment=openllama_7b_v1", "cluster=a100_80gb", "train.micro_batch_size=1", "data.order=mixture"]
    )
    ramp = [BatchStage(until="1B tokens", global_batch_size=256)]
    config = dataclasses.replace(given, train=dataclasses.replace(given.train, batch_ramp=ramp))
    options = _suggest(config, 256, count=20)
    assert options
    for option in options:
        assert 256 % (option.layout.micro_batch_size * option.layout.data) == 0
