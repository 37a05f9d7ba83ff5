"""What a run will need, before it has a machine: made from its configuration, in one process without a GPU.

Composes and checks the configuration as a run does, builds ranks of the real model without memory or peers and holds
what they have against the arithmetic of the layout. What the arithmetic says of memory, time, storage, probes and other
layouts is in the modules beside. Reads no data and no tokenizer: the vocabulary is `tokenizer.vocab_size`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pretrain.config.checks import check
from pretrain.config.load import config_hash
from pretrain.config.run import RunConfig
from pretrain.data.epochs import planned_epochs
from pretrain.engine.build import check_capabilities, footprint
from pretrain.engine.kernels import planned
from pretrain.engine.layout import Coordinates, ParallelLayout
from pretrain.errors import ConfigError
from pretrain.flops import flops_per_token
from pretrain.model.spec import ModelSpec
from pretrain.plan.layouts import LayoutOption, device_bytes, suggest
from pretrain.plan.memory import Memory, fullest, keeps_scores, rank_memory
from pretrain.plan.probing import ProbePlan, probe_plan
from pretrain.plan.storage import StoragePlan, storage_plan
from pretrain.plan.throughput import Throughput, predict, workload_of

if TYPE_CHECKING:
    from pretrain.engine.sharded.dry_run import Shard

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """A rank that was built: its place, layers, parameters and memory in bytes."""

    rank: int
    at: Coordinates
    layers: int
    parameters: int
    memory_bytes: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A run on devices that something is known of.

    Attributes:
        name: of the device.
        memory_bytes: of one.
        usable_bytes: what is left for tensors.
        needed_bytes: by the rank that needs most.
        fits: whether that is enough.
        throughput: of the given layout; `measured` says whether it was given by cluster.tokens_per_second_per_device.
        days: of training at that speed, without saves and probes.
        probe: what scoring adds.
        layouts: those that fit, the fastest first; None where none were looked for.
    """

    name: str
    memory_bytes: int
    usable_bytes: int
    needed_bytes: int
    fits: bool
    throughput: Throughput
    measured: bool
    days: float
    probe: ProbePlan
    layouts: list[LayoutOption] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will need; `--json` writes these fields.

    Attributes:
        parameters: of the model, with the true vocabulary.
        padding_parameters: rows that fill the vocabulary up.
        ranks: those that were built.
        covered: ranks of every place in tensor x pipeline were built, and hold each element once.
        tokens_per_step: over all ranks, after a batch ramp.
        kernels: what computes each part of a step, on the cluster's devices; memory and time are of these.
        keeps_scores: attention keeps its scores in memory.
        epochs: passes over each source, where the configuration says how much it has.
        storage: what it writes.
        flops_per_token: by definition, see `pretrain.flops`; total_flops: of the whole run.
        device: memory, time, probes and layouts on the cluster's devices; None where it names none.
    """

    name: str
    config_hash: str
    model: ModelSpec
    layout: ParallelLayout
    compute: str
    recompute: str
    kernels: dict[str, object]
    keeps_scores: bool
    optimizer_ranks: int
    parameters: int
    padding_parameters: int
    ranks: list[RankPlan]
    covered: bool
    tokens_per_step: int
    steps: int
    tokens: int
    epochs: dict[str, float]
    storage: StoragePlan
    flops_per_token: dict[str, float]
    total_flops: dict[str, float]
    device: DevicePlan | None


def make_plan(
    config: RunConfig,
    *,
    world_size: int,
    ranks: Sequence[int] | Literal["all"] | None = None,
    layouts: int = 5,
) -> Plan:
    """Plans a run of `world_size` processes; deterministic, in one process without a GPU.

    Args:
        config: the composed configuration.
        world_size: processes of the run.
        ranks: which to build; `all` is one of each place in tensor x pipeline; None the first of the first, a middle
            and the last pipeline stage.
        layouts: how many layouts to suggest at most, where a device is known.

    Raises:
        ConfigError: the run could not start, or a rank is not in it.
        EngineError: Megatron-core builds another model than the arithmetic says.
    """
    check(config, world_size, files=False)
    problems = check_capabilities(config, world_size=world_size)
    if problems:
        raise ConfigError(problems)
    spec = ModelSpec.from_config(config.model, config.tokenizer.vocab_size)
    layout = ParallelLayout.create(config, world_size=world_size)
    wanted = _ranks(layout, ranks)
    for rank in wanted:
        layout.coordinates(rank)  # refuses one that is not in the run

    from pretrain.engine.sharded.dry_run import build_shard, check_shard, covers_model, padding_parameters

    shards = [build_shard(config, spec, rank=rank, world_size=world_size) for rank in wanted]
    for shard in shards:
        check_shard(shard, spec, layout)
    flops = dataclasses.asdict(
        flops_per_token(config.model, vocab_size=spec.vocab_size, sequence_length=config.train.sequence_length)
    )
    return Plan(
        name=config.run.name,
        config_hash=config_hash(config),
        model=spec,
        layout=layout,
        compute=config.precision.compute,
        recompute=config.engine.recompute,
        kernels=planned(config).describe(),
        keeps_scores=keeps_scores(config),
        optimizer_ranks=footprint(config, layout, spec, stage=0).optimizer_ranks,
        parameters=spec.num_parameters,
        padding_parameters=padding_parameters(spec),
        ranks=[_rank_plan(shard, config, spec, layout) for shard in shards],
        covered=covers_model(shards, layout),
        tokens_per_step=config.batch_sizes.full_step_tokens,
        steps=config.total_steps,
        tokens=config.total_tokens,
        epochs=planned_epochs(config),
        storage=storage_plan(
            config,
            stored=spec.num_parameters + padding_parameters(spec),
            exported=spec.num_parameters,
            devices=world_size,
        ),
        flops_per_token=flops,
        total_flops={name: value * config.total_tokens for name, value in flops.items()},
        device=_device_plan(config, spec, layout, count=layouts),
    )


def _device_plan(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, count: int) -> DevicePlan | None:
    cluster, usable = config.cluster, device_bytes(config)
    if cluster.memory_gib is None or usable is None:
        return None
    needed = fullest(config, spec, layout).total
    throughput = predict(workload_of(config, spec, layout), cluster)
    count = count if needed <= usable else max(count, 1)  # what does fit is part of the answer
    searchable = count > 0 and cluster.peak_teraflops is not None  # a measurement alone ranks nothing
    return DevicePlan(
        name=cluster.device or "a device",
        memory_bytes=int(cluster.memory_gib * 2**30),
        usable_bytes=usable,
        needed_bytes=needed,
        fits=needed <= usable,
        throughput=throughput,
        measured=cluster.tokens_per_second_per_device is not None,
        days=config.total_tokens / throughput.tokens_per_second / _SECONDS_A_DAY,
        probe=probe_plan(config, tokens_per_second=throughput.tokens_per_second),
        layouts=suggest(config, spec, world_size=layout.world_size, count=count) if searchable else None,
    )


def _rank_plan(shard: Shard, config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> RankPlan:
    at = layout.coordinates(shard.rank)
    return RankPlan(
        rank=shard.rank,
        at=at,
        layers=spec.num_layers // layout.pipeline,
        parameters=shard.num_parameters,
        memory_bytes=rank_memory(config, spec, layout, stage=at.pipeline),
    )


def _ranks(layout: ParallelLayout, ranks: Sequence[int] | Literal["all"] | None) -> list[int]:
    if ranks is not None and ranks != "all":
        return list(ranks)
    stages = range(layout.pipeline) if ranks else sorted({0, layout.pipeline // 2, layout.pipeline - 1})
    places = [(stage, tensor) for stage in stages for tensor in range(layout.tensor if ranks else 1)]
    return [layout.rank_of(Coordinates(tensor=tensor, context=0, data=0, pipeline=stage)) for stage, tensor in places]
