"""`python -m pretrain.plan experiment=amber_7b world_size=224`: what a run will need, before it has a machine.

Composes and checks the configuration as a run does, builds ranks of the real model without memory or peers, holds
what they have against the arithmetic of the layout, and prints parameters, memory, batches, checkpoints and FLOPs.
Reads no data and no tokenizer: the vocabulary is `tokenizer.vocab_size`. Predicts no time: that is the machine's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretrain.checkpoint.calendar import save_steps
from pretrain.config.checks import check
from pretrain.config.load import compose, config_hash
from pretrain.config.run import RunConfig
from pretrain.engine.build import check_capabilities
from pretrain.engine.layout import Coordinates, ParallelLayout
from pretrain.engine.state_memory import StateMemory, state_memory
from pretrain.errors import ConfigError, FinelineError
from pretrain.flops import flops_per_token
from pretrain.model.spec import ModelSpec

if TYPE_CHECKING:
    from pretrain.engine.sharded.dry_run import Shard

_FP32 = 4
_STATE = 3 * _FP32  # of an element: weight and two moments
_COLUMNS = 6
_DEFINITIONS = {"full_attention": "A: 6N + 12LHS", "causal": "B: 6N + 6LHS", "matmul": "C: 6N"}

_HELP = """\
Says what a run will need: parameters and memory of its ranks, batches, checkpoints, FLOPs.

  python -m pretrain.plan experiment=amber_7b world_size=224
  python -m pretrain.plan experiment=amber_7b world_size=224 parallel.tensor=8 parallel.pipeline=4 rank=all
"""
_OVERRIDES = """overrides as of `python -m pretrain`, and
world_size=N (default: cluster.nodes x cluster.processes_per_node);
rank=R, rank=R,S,… or rank=all: ranks to build (default: the first of the first, a middle and the last stage)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes a rank needs at its fullest moment, without CUDA context, communication buffers and fragmentation.

    Attributes:
        weights: in the format of compute.
        gradients: fp32, summed over microbatches.
        optimizer: fp32 moments, and fp32 weights where compute is bf16: this rank's share.
        activations: kept for backward, all microbatches in flight; see `activation_bytes`.
        logits: of one microbatch, in the format of compute and in fp32; on the last pipeline stage.
        total: sum of all.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """A rank that was built: its place, layers, parameters and memory in bytes."""

    rank: int
    at: Coordinates
    layers: int
    parameters: int
    memory_bytes: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What a run writes.

    Attributes:
        saves: of the calendar.
        checkpoint_bytes: one that a run can resume from: fp32 weights and two moments, 12 bytes a parameter.
        weights_only_bytes: one that `checkpoint.keep` has reduced: 4 bytes a parameter.
        exports: Hugging Face folders.
        export_bytes: one of them: fp32, without the rows that fill the vocabulary up.
        total_bytes: checkpoints and exports at the end of the run.
    """

    saves: int
    checkpoint_bytes: int
    weights_only_bytes: int
    exports: int
    export_bytes: int
    total_bytes: int


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


def disk_plan(config: RunConfig, *, stored: int, exported: int) -> DiskPlan:
    """What the calendar, retention and exports of a run put on disk.

    Args:
        config: the resolved configuration.
        stored: elements of a checkpoint's weights.
        exported: elements of an export's.
    """
    calendar = save_steps(config)
    saves, keep = len(calendar.steps()), config.checkpoint.keep
    resumable = saves if keep is None else min(saves, keep)
    exports = {"all": saves, "last": 1}.get(config.checkpoint.export, 0)
    checkpoints = resumable * _STATE * stored + (saves - resumable) * _FP32 * stored
    return DiskPlan(
        saves=saves,
        checkpoint_bytes=_STATE * stored,
        weights_only_bytes=_FP32 * stored,
        exports=exports,
        export_bytes=_FP32 * exported,
        total_bytes=checkpoints + exports * _FP32 * exported,
    )


def chunks_in_flight(layout: ParallelLayout, *, stage: int) -> int:
    """Forward passes of a model chunk that wait for their backward, at most, on one pipeline stage.

    1F1B; with virtual stages the interleaved schedule of Narayanan et al. 2021 (arXiv 2104.04473).
    """
    ahead = layout.pipeline - stage - 1
    if layout.virtual_pipeline > 1:
        ahead = 2 * ahead + (layout.virtual_pipeline - 1) * layout.pipeline
    return min(ahead + 1, layout.num_microbatches * layout.virtual_pipeline)


def activation_bytes(config: RunConfig, spec: ModelSpec, layout: ParallelLayout, *, stage: int) -> tuple[int, int]:
    """Activations and logits of a rank on one pipeline stage, in bytes.

    Counted operation by operation in the manner of Korthikanti et al. 2022 (arXiv 2205.05198), for what this model
    does: RMSNorm (fused, as on CUDA), rotary embedding, attention that keeps no scores (nothing grows with S²),
    SwiGLU, no dropout, nothing else fused. Elements of a token and layer, where Q and K are the widths of all queries
    and of all keys, F that of SwiGLU, t tensor parallel, and r = t with sequence parallelism, else 1:

        4 H / r         inputs and outputs of the two norms
        3 (Q + K) / t   the projection (values are a view of it), queries and keys after rotation, the result
        5 F / t         the projection (2), silu of the gate, the other half plus an offset of 0, their product

    To these come 4 cosines and sines of a head for each position, and the softmax's normaliser, fp32, for each head:
    all that recompute=selective saves, as there are no scores. recompute=full keeps H / r and one layer in full.
    Context parallelism keeps keys and values of the whole sequence and a mask instead of the projection.
    """
    size = 2 if config.precision.compute == "bf16" else _FP32
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    length, tensor, recompute = config.train.sequence_length, layout.tensor, config.engine.recompute
    tokens = layout.micro_batch_size * length // layout.context
    residual = size * spec.hidden_size * tokens // (tensor if config.parallel.sequence else 1)
    attention = size * tokens * 3 * (queries + keys) // tensor
    if recompute != "selective":
        if layout.context > 1:
            attention = size * tokens * 2 * (queries + keys * layout.context) // tensor
            attention += size * length * length // layout.context
        attention += _FP32 * tokens * spec.num_attention_heads // tensor
    rotation = size * 4 * length // layout.context * spec.head_dim
    layer = 4 * residual + rotation + attention + size * tokens * 5 * spec.ffn_hidden_size // tensor
    layers = spec.num_layers // (layout.pipeline * layout.virtual_pipeline)
    last = stage == layout.pipeline - 1
    chunk = layers * (residual if recompute == "full" else layer)
    if not last or layout.virtual_pipeline > 1:
        chunk += residual  # a stage's output stays until its backward: Megatron is told not to deallocate it
    total = chunks_in_flight(layout, stage=stage) * chunk + (layer if recompute == "full" else 0)
    if not last:
        return total, 0
    logits = tokens * spec.padded_vocab_size // tensor * (_FP32 + (size if size < _FP32 else 0))
    return total + 2 * residual, logits


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


def to_text(plan: Plan) -> str:
    """The plan as a page to read: memory in GiB, disk in powers of ten."""
    return "\n".join(line.rstrip() for line in _lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    model, layout, disk = plan.model, plan.layout, plan.disk
    yield f"{plan.name}, configuration {plan.config_hash}"
    yield layout.describe()
    yield ""
    yield _row("Parameters", f"{plan.parameters:,}")
    yield _row("  rows of padding", f"{plan.padding_parameters:,} more: {model.padded_vocab_size:,} rows")
    yield ""
    yield from _rank_lines(plan)
    yield ""
    yield _row("Tokens a step", f"{plan.tokens_per_step:,}")
    yield _row("  microbatches", f"{layout.num_microbatches:,} of {layout.micro_batch_size} sequences a rank")
    yield _row("Steps", f"{plan.steps:,}")
    yield _row("Tokens", f"{plan.tokens:,}")
    yield ""
    yield _row("Checkpoints", f"{disk.saves:,}, {_disk(disk.checkpoint_bytes)} each, 12 bytes a parameter")
    yield _row("  reduced to weights", f"{_disk(disk.weights_only_bytes)} each")
    yield _row("  exports", f"{disk.exports:,}, {_disk(disk.export_bytes)} each")
    yield _row("  on disk at the end", _disk(disk.total_bytes))
    yield ""
    yield _row("FLOPs", "a token", "the run")
    for name, definition in _DEFINITIONS.items():
        yield _row(f"  {definition}", f"{plan.flops_per_token[name]:.4g}", f"{plan.total_flops[name]:.4g}")


def _rank_lines(plan: Plan) -> Iterator[str]:
    layout, shown = plan.layout, plan.ranks[:_COLUMNS]
    if len(plan.ranks) > _COLUMNS:
        shown = ([one for one in plan.ranks if one.at.tensor == 0] or plan.ranks)[:_COLUMNS]
    yield _row("Rank", *(f"{one.rank}" for one in shown), *["…"] * (len(plan.ranks) > len(shown)))
    yield _row("  stage, tensor rank", *(f"{one.at.pipeline}, {one.at.tensor}" for one in shown))
    yield _row("  layers", *(f"{one.layers}" for one in shown))
    yield _row("  parameters", *(f"{one.parameters:,}" for one in shown))
    yield _row("Memory, GiB")
    for field in dataclasses.fields(Memory):
        yield _row(f"  {field.name}", *(f"{getattr(one.memory_bytes, field.name) / 2**30:.2f}" for one in shown))
    yield (
        f"  {plan.compute} weights, fp32 gradients, optimizer over {plan.optimizer_ranks:,} ranks; activations as "
        f"Korthikanti et al. 2022,\n  without scores, recompute={plan.recompute}. CUDA context, communication buffers "
        f"and fragmentation come on top."
    )
    places = layout.tensor * layout.pipeline
    if plan.covered:
        yield f"  Built and counted: {places} of {places} different shards; together they hold each element once."
    else:
        yield f"  Built and counted: {len(plan.ranks)} ranks of {places} different shards; rank=all builds all."


def _row(name: str, *values: str) -> str:
    if len(values) == 1:
        return f"{name:<24}{values[0]}"
    return f"{name:<24}" + "".join(f"{value:<18}" for value in values)


def _disk(count: int) -> str:
    return f"{count / 1e12:,.2f} TB" if count >= 1e12 else f"{count / 1e9:,.2f} GB"


def main(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m pretrain.plan", description=_HELP, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too, in bytes")
    parser.add_argument("--config-dir", metavar="DIR", help="a further folder of configuration groups")
    line = parser.parse_intermixed_args(arguments)
    try:
        own = dict(text.split("=", 1) for text in line.overrides if text.startswith(("world_size=", "rank=")))
        overrides = [text for text in line.overrides if text.partition("=")[0] not in own]
        config = compose(overrides, config_dir=line.config_dir)
        size = _whole("world_size", own["world_size"])[0] if "world_size" in own else None
        rank = own.get("rank", "all")
        plan = make_plan(
            config,
            world_size=size or config.cluster.nodes * config.cluster.processes_per_node,
            ranks=_whole("rank", rank) if rank != "all" else "all" if "rank" in own else None,
        )
        if line.json is not None:
            _write(line.json, plan)
    except FinelineError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        print("\n  - ".join(["This run cannot be planned:", *problems]), file=sys.stderr)
        return error.exit_code
    print(to_text(plan), end="")
    return 0


def _whole(key: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or (key == "world_size" and (len(parts) > 1 or int(text) < 1)):
        allowed = "whole numbers separated by commas, or all" if key == "rank" else "one whole number of 1 or more"
        raise ConfigError(f"{key}={text} is not valid: give {allowed}, as {key}=8.")
    return [int(part) for part in parts]


def _write(path: Path, plan: Plan) -> None:
    try:
        path.write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written: {error.strerror}. Choose a folder that exists.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
