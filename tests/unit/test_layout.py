"""The process grid against a table written by hand, and against Megatron's order."""

from __future__ import annotations

import dataclasses

import pytest

from pretrain.config.load import compose
from pretrain.config.run import ParallelSection, RunConfig, TrainSection
from pretrain.engine.layout import Coordinates, ParallelLayout
from pretrain.errors import ConfigError


def config(*, tensor: int = 1, pipeline: int = 1, context: int = 1, micro: int = 1, total: int = 8) -> RunConfig:
    return RunConfig(
        parallel=ParallelSection(tensor=tensor, pipeline=pipeline, context=context),
        train=TrainSection(micro_batch_size=micro, global_batch_size=total),
    )


def test_tensor_varies_fastest_then_context_then_data_then_pipeline() -> None:
    layout = ParallelLayout.create(config(tensor=2, pipeline=2, context=2), world_size=16)
    assert [dataclasses.astuple(layout.coordinates(rank)) for rank in range(16)] == [
        (tensor, context, data, pipeline)
        for pipeline in range(2)
        for data in range(2)
        for context in range(2)
        for tensor in range(2)
    ]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "context", "world_size"), [(1, 1, 1, 1), (8, 4, 1, 4096), (2, 3, 4, 48)]
)
def test_rank_and_coordinates_are_inverse(tensor: int, pipeline: int, context: int, world_size: int) -> None:
    total = 8 * world_size
    layout = ParallelLayout.create(
        config(tensor=tensor, pipeline=pipeline, context=context, total=total), world_size=world_size
    )
    assert [layout.rank_of(layout.coordinates(rank)) for rank in range(world_size)] == list(range(world_size))
    assert layout.tensor * layout.context * layout.pipeline * layout.data == world_size


def test_order_is_megatrons() -> None:
    """megatron.core.parallel_state.RankGenerator is the oracle; it is plain Python."""
    parallel_state = pytest.importorskip("megatron.core.parallel_state")
    layout = ParallelLayout.create(config(tensor=2, pipeline=3, context=2, total=24), world_size=24)
    ranks = parallel_state.RankGenerator(tp=2, ep=1, dp=2, pp=3, cp=2, order="tp-cp-ep-dp-pp")
    for name, field in (("tp", "tensor"), ("cp", "context"), ("dp", "data"), ("pp", "pipeline")):
        for group in ranks.get_ranks(name):
            places = [layout.coordinates(rank) for rank in group]
            assert [getattr(place, field) for place in places] == list(range(len(group)))
            assert len({dataclasses.replace(place, **{field: 0}) for place in places}) == 1


def test_amber_on_its_224_gpus_needs_no_accumulation() -> None:
    layout = ParallelLayout.create(compose(["experiment=amber_7b"]), world_size=224)
    assert (layout.data, layout.num_microbatches) == (224, 1)
    assert layout.describe().startswith("224 processes = 1 tensor x 1 context x 224 data x 1 pipeline")


def test_a_grid_that_does_not_fit_prints_the_sum_and_what_would() -> None:
    with pytest.raises(
        ConfigError, match=r"3 x 1 x 1 = 3 .* 8 were started; 8 % 3 = 2\. Products that fit: 1, 2, 4, 8"
    ):
        ParallelLayout.create(config(tensor=3), world_size=8)


def test_a_batch_that_does_not_fit_prints_the_sum_and_what_would() -> None:
    with pytest.raises(ConfigError, match=r"3 x 2 = 6; 20 % 6 = 2\. Nearest .* 18 and 24; or .* one of 1, 2, 5, 10\."):
        ParallelLayout.create(config(micro=3, total=20), world_size=2)


def test_a_rank_outside_the_world_is_refused() -> None:
    layout = ParallelLayout.create(config(), world_size=2)
    with pytest.raises(ConfigError, match="rank 2"):
        layout.coordinates(2)
    assert layout.coordinates(1) == Coordinates(tensor=0, context=0, data=1, pipeline=0)
