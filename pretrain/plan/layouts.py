"""Layouts of a run that fit its devices, ranked by predicted throughput. Arithmetic only: thousands are looked at.

Varied are tensor, pipeline, virtual pipeline, context and sequence parallel, micro batch size, recomputation, and who
shares optimizer state, gradients and weights out (Megatron's distributed optimizer or DeepSpeed's ZeRO stages). The
model, the batch and the processes stay; so does what else the engine is told. recompute=selective is tried with
fused layers alone: it saves next to nothing in plain ones. What is suggested has passed every check that a run passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.config.checks import find_problems, parallel_problems
from pretrain.config.cluster import ClusterConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.grid import divisors, grid_problems
from pretrain.config.run import ParallelSection, RunConfig
from pretrain.engine.build import check_capabilities, engine_variants, planning
from pretrain.engine.capabilities import ENGINES
from pretrain.engine.kernels import planned
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec
from pretrain.plan.memory import RESERVED_SHARE, Memory, fullest
from pretrain.plan.throughput import predict, workload_of

_GIB = 2**30
_MOST_TENSOR = 8
"""Tensor parallelism reduces activations twice a layer, which links between machines are too slow for."""
_MOST_CHUNKS = 8
_MOST_MICRO_BATCH = 32
_LONG = 8192
"""Tokens of a sequence from which on it is worth cutting over context-parallel ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOption:
    """A layout that fits.

    Attributes:
        overrides: what to put behind the command line to get it.
        layout: sizes of the grid.
        sharing: who shares state out, in words.
        recompute: value of engine.recompute.
        sequence: value of parallel.sequence.
        memory_bytes: of the rank that needs most.
        tokens_per_second: predicted, the whole job.
        mfu_causal: by definition B.
    """

    overrides: tuple[str, ...]
    layout: ParallelLayout
    sharing: str
    recompute: str
    sequence: bool
    memory_bytes: Memory
    tokens_per_second: float
    mfu_causal: float | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    config: RunConfig
    layout: ParallelLayout
    memory: Memory
    tokens_per_second: float
    mfu_causal: float | None


def device_bytes(config: RunConfig) -> int | None:
    """Memory of a device that tensors can have; None where the cluster does not say."""
    gib = config.cluster.memory_gib
    return None if gib is None else int(gib * (1 - RESERVED_SHARE) * _GIB)


def suggest(config: RunConfig, spec: ModelSpec, *, world_size: int, count: int) -> list[LayoutOption]:
    """The fastest layouts that fit, best first, one for each engine and way to cut the model up; deterministic.

    Where throughput was measured, predictions are scaled so that the given layout has it.

    Args:
        config: the resolved configuration, with a cluster that describes a device.
        spec: sizes of the model.
        world_size: processes of the run.
        count: how many to return at most.
    """
    limit = device_bytes(config)
    assert limit is not None, "asked for a cluster without a device"
    best: dict[tuple[int, int, int, str], _Candidate] = {}
    for candidate in _candidates(config, spec, world_size, limit):
        layout = candidate.layout
        shape = (layout.tensor, layout.pipeline, layout.context, candidate.config.engine.name)
        if shape not in best or _rank(candidate) < _rank(best[shape]):
            best[shape] = candidate
    for shape, candidate in list(best.items()):
        same = best.get((*shape[:3], config.engine.name))  # under the run's own engine, as fast in no more memory?
        if same is not None and same is not candidate and _covers(same, candidate):
            del best[shape]
    found: list[LayoutOption] = []
    for candidate in sorted(best.values(), key=_rank):
        if len(found) == count:
            break
        if not list(find_problems(candidate.config, world_size, files=False)):
            found.append(_option(candidate, config))
    return found


def _rank(candidate: _Candidate) -> tuple[float, int]:
    """Faster first; of two that are equally fast, the one that needs less."""
    return -candidate.tokens_per_second, candidate.memory.total


def _covers(own: _Candidate, other: _Candidate) -> bool:
    return own.tokens_per_second >= other.tokens_per_second and own.memory.total <= other.memory.total


def _candidates(config: RunConfig, spec: ModelSpec, world_size: int, limit: int) -> Iterator[_Candidate]:
    cluster, scale = _calibrated(config, spec, world_size)
    for engine in _engines(config):
        for parallel in _grids(config, spec, engine, world_size):
            cut = dataclasses.replace(config, parallel=parallel, engine=engine)
            if any(parallel_problems(cut)):
                continue
            for one in _batched(cut, world_size):
                layout = ParallelLayout.create(one, world_size=world_size)
                memory = fullest(one, spec, layout)
                if memory.total <= limit and not check_capabilities(one, world_size=world_size):
                    speed = predict(workload_of(one, spec, layout), cluster)
                    mfu = None if speed.mfu_causal is None else speed.mfu_causal * scale
                    yield _Candidate(one, layout, memory, speed.tokens_per_second * scale, mfu)


def _calibrated(config: RunConfig, spec: ModelSpec, world_size: int) -> tuple[ClusterConfig, float]:
    """The cluster to predict with, and a factor: what was measured of the given layout over what is predicted of it."""
    measured = config.cluster.tokens_per_second_per_device
    if measured is None:
        return config.cluster, 1.0
    cluster = dataclasses.replace(config.cluster, tokens_per_second_per_device=None)
    layout = ParallelLayout.create(config, world_size=world_size)
    return cluster, measured * world_size / predict(workload_of(config, spec, layout), cluster).tokens_per_second


def _engines(config: RunConfig) -> Iterator[EngineConfig]:
    """Who shares state out: the engine as it is told, and the others as their groups in `configs/engine` are."""
    fused = planned(config).layers == "fused"
    for recompute in ("none", "selective", "full") if fused else ("none", "full"):
        for engine in engine_variants(config.engine):
            yield dataclasses.replace(engine, recompute=recompute)


def _grids(config: RunConfig, spec: ModelSpec, engine: EngineConfig, world_size: int) -> Iterator[ParallelSection]:
    can = ENGINES[engine.name]
    most = min(_MOST_TENSOR, config.cluster.processes_per_node)
    contexts = {1}
    if can.context:
        contexts |= {config.parallel.context, *((2, 4, 8) if config.train.sequence_length >= _LONG else ())}
    for tensor in (size for size in divisors(world_size) if size <= max(most, config.parallel.tensor)):
        for pipeline in divisors(spec.num_layers) if can.pipeline else [1]:
            for context in sorted(contexts):
                for virtual in _chunks(spec, pipeline):
                    parallel = ParallelSection(
                        tensor=tensor,
                        pipeline=pipeline,
                        virtual_pipeline=virtual,
                        context=context,
                        sequence=tensor > 1 and can.sequence,
                    )
                    if not grid_problems(parallel, world_size=world_size):
                        yield parallel


def _chunks(spec: ModelSpec, pipeline: int) -> list[int]:
    return [1] if pipeline == 1 else [size for size in divisors(spec.num_layers // pipeline) if size <= _MOST_CHUNKS]


def _batched(config: RunConfig, world_size: int) -> Iterator[RunConfig]:
    """With every micro batch size that all stages of the batch ramp allow."""
    parallel, train = config.parallel, config.train
    data = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
    sizes = [train.global_batch_size, *(stage.global_batch_size for stage in train.batch_ramp)]
    if any(size % data for size in sizes):
        return
    for micro in divisors(train.global_batch_size // data):
        if micro <= _MOST_MICRO_BATCH and not any(size // data % micro for size in sizes):
            yield dataclasses.replace(config, train=dataclasses.replace(train, micro_batch_size=micro))


def _option(candidate: _Candidate, given: RunConfig) -> LayoutOption:
    engine = candidate.config.engine
    return LayoutOption(
        overrides=tuple(overrides_of(candidate.config, given)),
        layout=candidate.layout,
        sharing=planning(engine).sharing(engine),
        recompute=engine.recompute,
        sequence=candidate.config.parallel.sequence,
        memory_bytes=candidate.memory,
        tokens_per_second=candidate.tokens_per_second,
        mfu_causal=candidate.mfu_causal,
    )


def overrides_of(wanted: RunConfig, given: RunConfig) -> Iterator[str]:
    """What leads from one configuration to another that differs in engine, grid, micro batch and recomputation.

    An engine's group is put behind what the command line says of `engine` already, so that this is taken back by name.
    """
    engine, own = wanted.engine, given.engine
    group = planning(engine).group(engine)
    switched = group != planning(own).group(own)
    if switched:
        yield f"engine={group}"
    for key in ("tensor", "pipeline", "virtual_pipeline", "context", "sequence"):
        value = getattr(wanted.parallel, key)
        if value != getattr(given.parallel, key):
            yield f"parallel.{key}={_written(value)}"
    if wanted.train.micro_batch_size != given.train.micro_batch_size:
        yield f"train.micro_batch_size={wanted.train.micro_batch_size}"
    usual = planning(own).as_group(own)
    for key in (field.name for field in dataclasses.fields(EngineConfig)):
        value, before = getattr(engine, key), getattr(own, key)
        if key in ("name", "zero_stage") or value == before:
            continue
        if not switched or key == "recompute" or before != getattr(usual, key):
            yield f"engine.{key}={_written(value)}"


def _written(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
