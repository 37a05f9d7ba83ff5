"""`python -m pretrain.plan experiment=amber_7b world_size=224`: what a run will need, before it has a machine.

Composes and checks the configuration as a run does, builds ranks of the real model without memory or peers, holds
what they have against the arithmetic of the layout, and prints parameters, memory, batches, checkpoints and FLOPs.
Reads no data and no tokenizer: the vocabulary is `tokenizer.vocab_size`. Predicts no time: that is the machine's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pretrain.config.checks import check
from pretrain.config.load import config_hash
from pretrain.config.run import RunConfig
from pretrain.engine.build import check_capabilities
from pretrain.engine.layout import Coordinates, ParallelLayout
from pretrain.engine.state_memory import StateMemory, state_memory
from pretrain.errors import ConfigError
from pretrain.flops import flops_per_token
from pretrain.model.spec import ModelSpec
from pretrain.plan.memory import Memory, activation_bytes
from pretrain.plan.storage import DiskPlan, disk_plan

if TYPE_CHECKING:
    from pretrain.engine.sharded.dry_run import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """A rank that was built: its place, layers, parameters and memory in bytes."""

    rank: int
    at: Coordinates
    layers: int
    parameters: int
    memory_bytes: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will need; `--json` writes these fields.

    Attributes:
        parameters: of the model, with the true vocabulary.
        padding_parameters: rows that fill the vocabulary up.
        ranks: those that were built.
        covered: ranks of every place in tensor x pipeline were built, and hold each element once.
        tokens_per_step: over all ranks, after a batch ramp.
        flops_per_token: by definition, see `pretrain.flops`; total_flops: of the whole run.
    """

    name: str
    config_hash: str
    model: ModelSpec
    layout: ParallelLayout
    compute: str
    recompute: str
    optimizer_ranks: int
    parameters: int
    padding_parameters: int
    ranks: list[RankPlan]
    covered: bool
    tokens_per_step: int
    steps: int
    tokens: int
    disk: DiskPlan
    flops_per_token: dict[str, float]
    total_flops: dict[str, float]


def make_plan(config: RunConfig, *, world_size: int, ranks: Sequence[int] | Literal["all"] | None = None) -> Plan:
    """Plans a run of `world_size` processes; deterministic, in one process without a GPU.

    Args:
        config: the composed configuration.
        world_size: processes of the run.
        ranks: which to build; `all` is one of each place in tensor x pipeline; None the first of the first, a middle
            and the last pipeline stage.

    Raises:
        ConfigError: the run could not start, or a rank is not in it.
        EngineError: Megatron-core builds another model than the arithmetic says.
    """
    check(config, world_size)
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
        optimizer_ranks=_state(shards[0], config, layout).optimizer_ranks,
        parameters=spec.num_parameters,
        padding_parameters=padding_parameters(spec),
        ranks=[_rank_plan(shard, config, spec, layout) for shard in shards],
        covered=covers_model(shards, layout),
        tokens_per_step=config.batch_sizes.full_step_tokens,
        steps=config.total_steps,
        tokens=config.total_tokens,
        disk=disk_plan(config, stored=spec.num_parameters + padding_parameters(spec), exported=spec.num_parameters),
        flops_per_token=flops,
        total_flops={name: value * config.total_tokens for name, value in flops.items()},
    )


def _rank_plan(shard: Shard, config: RunConfig, spec: ModelSpec, layout: ParallelLayout) -> RankPlan:
    at = layout.coordinates(shard.rank)
    state = _state(shard, config, layout)
    activations, logits = activation_bytes(config, spec, layout, stage=at.pipeline)
    parts = {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "activations": activations,
        "logits": logits,
    }
    return RankPlan(
        rank=shard.rank,
        at=at,
        layers=spec.num_layers // layout.pipeline,
        parameters=shard.num_parameters,
        memory_bytes=Memory(**parts, total=sum(parts.values())),
    )


def _state(shard: Shard, config: RunConfig, layout: ParallelLayout) -> StateMemory:
    return state_memory(
        config,
        num_parameters=shard.num_parameters,
        weight_bytes=shard.weight_bytes,
        replicas=layout.data * layout.context,
    )


def _ranks(layout: ParallelLayout, ranks: Sequence[int] | Literal["all"] | None) -> list[int]:
    if ranks is not None and ranks != "all":
        return list(ranks)
    stages = range(layout.pipeline) if ranks else sorted({0, layout.pipeline // 2, layout.pipeline - 1})
    places = [(stage, tensor) for stage in stages for tensor in range(layout.tensor if ranks else 1)]
    return [layout.rank_of(Coordinates(tensor=tensor, context=0, data=0, pipeline=stage)) for stage, tensor in places]
