"""Judges a composed configuration: every rule on values, alone and across groups, and all problems in one error.

Rules that need files of text, the tokenizer or the engine's abilities are checked where those are opened.
Torch-free, so that a login node can tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.batch_size import RAMP_KEY
from pretrain.config.cluster_checks import cluster_problems
from pretrain.config.data import ORDERS, VERIFY
from pretrain.config.data_checks import data_problems
from pretrain.config.grid import batch_problems, divisors, grid_problems
from pretrain.config.kernels import CHOICES as KERNEL_CHOICES
from pretrain.config.nearest import did_you_mean
from pretrain.config.probe import LIMIT, is_limit
from pretrain.config.run import RunConfig
from pretrain.config.schedule_checks import schedule_problems
from pretrain.config.tokenizer import LOSSES, PRESETS
from pretrain.config.written import DURATIONS
from pretrain.errors import ConfigError
from pretrain.naming import template_problems
from pretrain.units import Duration, parse_share

CHOICES = {
    "train.loss": ("tokens", "sequences"),
    "data.order": ORDERS,
    "data.verify": VERIFY,
    "tokenizer.preset": PRESETS,
    "schedule.kind": ("cosine", "linear", "constant", "wsd", "multi_step"),
    "schedule.decay_shape": ("linear", "cosine", "exponential", "1-sqrt"),
    "optimizer.decay": ("all", "matrices"),
    "engine.name": ("megatron", "deepspeed"),
    "engine.recompute": ("none", "selective", "full"),
    "engine.offload_optimizer": ("none", "cpu", "nvme"),  # nvme is refused with its reason by engine/build.py
    "engine.offload_parameters": ("none", "cpu", "nvme"),
    "engine.adam": ("auto", "torch", "deepspeed"),
    "precision.compute": ("bf16", "fp32"),
    **KERNEL_CHOICES,
    "checkpoint.export": ("none", "last", "all"),
    "checkpoint.export_dtype": ("float32", "bfloat16"),
    "probe.mode": ("inline", "beside", "off"),
}
"""Allowed values of the fields that are names."""

_RANGES: dict[str, tuple[float, float]] = {
    "run.seed": (0, 2**63 - 1),
    "train.steps": (1, math.inf),
    "train.tokens": (1, math.inf),
    "train.micro_batch_size": (1, math.inf),
    "train.global_batch_size": (1, math.inf),
    "train.sequence_length": (2, 2**20),
    "parallel.tensor": (1, math.inf),
    "parallel.pipeline": (1, math.inf),
    "parallel.virtual_pipeline": (1, math.inf),
    "parallel.context": (1, math.inf),
    "model.num_layers": (1, math.inf),
    "model.hidden_size": (2, math.inf),
    "model.ffn_hidden_size": (1, math.inf),
    "model.num_attention_heads": (1, math.inf),
    "model.num_query_groups": (1, math.inf),
    "model.vocab_multiple": (1, math.inf),
    "model.init_std": (0, math.inf),
    "data.validation_tokens": (0, math.inf),
    "data.holdout_fraction": (0, 0.5),
    "data.num_chunks": (1, math.inf),
    "data.read_ahead_batches": (1, math.inf),
    "data.shard_bytes": (1, math.inf),
    "data.max_line_bytes": (1, math.inf),
    "data.max_rejected_share": (0, 1),
    "data.max_rejected_bytes_share": (0, 1),
    "data.max_damaged_files": (0, math.inf),
    "tokenizer.vocab_size": (260, 2**31 - 1),  # 256 bytes, <unk>, <s>, </s>, and a piece
    "tokenizer.training_bytes": (1, math.inf),
    "optimizer.beta1": (0, 0.999999),
    "optimizer.beta2": (0, 0.999999),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.grad_clip": (0, math.inf),
    "optimizer.z_loss": (0, math.inf),
    "schedule.learning_rate": (0, math.inf),
    "schedule.min_learning_rate": (0, math.inf),
    "engine.bucket_size": (1, math.inf),
    "engine.timeout_minutes": (1, math.inf),
    "precision.fp8_tolerance": (0, math.inf),
    "checkpoint.per_decade": (1, 1000),
    "checkpoint.start_step": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "checkpoint.export_tolerance": (0, math.inf),
    "probe.tokens_per_row": (1, math.inf),
    "cluster.nodes": (1, math.inf),
    "cluster.processes_per_node": (1, math.inf),
}
_POSITIVE = ("model.rope_base", "model.norm_epsilon", "optimizer.epsilon")
_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+,@-]*")


def check(config: RunConfig, world_size: int | None = None, *, files: bool = True) -> None:
    """Refuses a configuration that cannot run.

    Args:
        config: the composed configuration.
        world_size: number of processes of the run; None leaves out what depends on it.
        files: whether the files that a run begins with must be named and there. A plan needs none.

    Raises:
        ConfigError: carries every problem found.
    """
    problems = list(find_problems(config, world_size, files=files))
    if problems:
        raise ConfigError(problems)


def find_problems(config: RunConfig, world_size: int | None = None, *, files: bool = True) -> Iterator[str]:
    """The problems that `check` raises, one by one."""
    ranges, durations = list(_range_problems(config)), list(_duration_problems(config))
    yield from [*ranges, *durations]
    yield from _field_problems(config)
    yield from _limit_problems(config)
    yield from _length_problems(config)
    yield from data_problems(config)
    yield from cluster_problems(config.cluster)
    yield from _tokenizer_problems(config)
    yield from _file_problems(config) if files else ()
    if not ranges:  # what follows divides by these fields
        yield from _model_problems(config)
        yield from parallel_problems(config)
        if not durations:
            yield from schedule_problems(config)
        yield from _world_problems(config, world_size)
    yield from _side_problems(config)


def _get(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _range_problems(config: RunConfig) -> Iterator[str]:
    for key, (low, high) in _RANGES.items():
        value = _get(config, key)
        if value is not None and not (low <= value <= high and value != math.inf):
            bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            yield f"{key}={value} is out of range: it must be {bounds}."
    for key in _POSITIVE:
        if not 0 < _get(config, key) < math.inf:
            yield f"{key}={_get(config, key)} is out of range: it must be above 0 and finite."


def _limit_problems(config: RunConfig) -> Iterator[str]:
    limit = config.probe.limit
    if limit is not None and not is_limit(limit):
        yield f"probe.limit={limit} is not {LIMIT}."


def _duration_problems(config: RunConfig) -> Iterator[str]:
    for key in DURATIONS:
        if _get(config, key) is not None:
            try:
                duration = Duration.parse(_get(config, key), key=key)
                if duration.count == 0 and key.endswith((".every", ".milestones")):
                    yield f"{key}={_get(config, key)!r} must be longer than nothing."
            except ConfigError as error:
                yield from error.problems
    for index, stage in enumerate(config.train.batch_ramp):
        if stage.global_batch_size < 1:
            yield f"{RAMP_KEY}[{index}].global_batch_size={stage.global_batch_size} must be at least 1."
        try:
            Duration.parse(stage.until, key=f"{RAMP_KEY}[{index}].until")
        except ConfigError as error:
            yield from error.problems


def _field_problems(config: RunConfig) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            yield f"{key}={value} is unknown.{did_you_mean(str(value), allowed)} Allowed: {', '.join(allowed)}."
    if not _RUN_NAME.fullmatch(config.run.name):
        yield (
            f"run.name={config.run.name!r} cannot name a folder: use letters, digits and _ . = + , @ -, and start "
            f"with a letter, a digit or _."
        )


def _length_problems(config: RunConfig) -> Iterator[str]:
    steps, tokens = config.train.steps, config.train.tokens
    if (steps is None) == (tokens is None):
        found = "neither" if steps is None else f"both (train.steps={steps}, train.tokens={tokens})"
        yield (
            f"Exactly one of train.steps and train.tokens says how long to train; got {found}. Give one of them, "
            f"as train.steps=1000, or choose a recipe, as experiment=demo; set the other to null."
        )


def _model_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
    if model.hidden_size % heads:
        yield (
            f"model.hidden_size={model.hidden_size} must be a multiple of model.num_attention_heads={heads}; "
            f"{model.hidden_size} % {heads} = {model.hidden_size % heads}. Head counts that fit: "
            f"{', '.join(str(d) for d in divisors(model.hidden_size) if d <= 256)}."
        )
    elif (model.hidden_size // heads) % 2:
        yield (
            f"model.hidden_size / model.num_attention_heads = {model.hidden_size} / {heads} = "
            f"{model.hidden_size // heads} is odd, but rotary embeddings turn pairs of dimensions. Make it even."
        )
    if heads % groups:
        yield (
            f"model.num_attention_heads={heads} must be a multiple of model.num_query_groups={groups}; "
            f"{heads} % {groups} = {heads % groups}. Use one of {', '.join(map(str, divisors(heads)))}, or null."
        )


def parallel_problems(config: RunConfig) -> Iterator[str]:
    """Where the process grid does not fit the model; the ranges of both have been checked."""
    model, parallel, length = config.model, config.parallel, config.train.sequence_length
    multiple = model.vocab_multiple
    shared = {
        "model.num_attention_heads": model.num_attention_heads,
        **({"model.num_query_groups": model.num_query_groups} if model.num_query_groups else {}),
        "model.ffn_hidden_size": model.ffn_hidden_size,
        "rows of the embedding (tokenizer.vocab_size rounded up to model.vocab_multiple)": (
            -(-config.tokenizer.vocab_size // multiple) * multiple
        ),
    }
    for name, value in shared.items():
        if value % parallel.tensor:
            yield (
                f"parallel.tensor={parallel.tensor} must divide {name} = {value}; {value} % {parallel.tensor} = "
                f"{value % parallel.tensor}. Use one of {', '.join(str(d) for d in divisors(value) if d <= 64)}."
            )
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if model.num_layers % chunks:
        yield (
            f"model.num_layers={model.num_layers} must be a multiple of parallel.pipeline x parallel.virtual_pipeline "
            f"= {parallel.pipeline} x {parallel.virtual_pipeline} = {chunks}; {model.num_layers} % {chunks} = "
            f"{model.num_layers % chunks}. Products that fit: {', '.join(map(str, divisors(model.num_layers)))}."
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        yield f"parallel.virtual_pipeline={parallel.virtual_pipeline} needs parallel.pipeline of at least 2, not 1."
    if parallel.sequence and parallel.tensor == 1:
        yield "parallel.sequence=true splits activations over the tensor-parallel ranks: it needs parallel.tensor > 1."
    unit = 2 * parallel.context if parallel.context > 1 else 1
    unit *= parallel.tensor if parallel.sequence else 1
    if length % unit:
        yield (
            f"train.sequence_length={length} must be a multiple of {unit} (2 x parallel.context={parallel.context}"
            f"{f' x parallel.tensor={parallel.tensor}' if parallel.sequence else ''}); {length} % {unit} = "
            f"{length % unit}. Nearest: {max(length // unit, 1) * unit} and {(length // unit + 1) * unit}."
        )


def _world_problems(config: RunConfig, world_size: int | None) -> Iterator[str]:
    if world_size is None:
        yield from batch_problems(config.train, data_parallel=1)
        return
    grid = grid_problems(config.parallel, world_size=world_size)
    yield from grid
    if not grid:
        parallel = config.parallel
        size = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
        yield from batch_problems(config.train, data_parallel=size)


def _file_problems(config: RunConfig) -> Iterator[str]:
    path = config.tokenizer.path
    if path is None and config.data.token_chunks:
        yield (
            "data.token_chunks holds ids of a tokenizer, but tokenizer.path=null would train another. Give the "
            "tokenizer.model they were made with."
        )
    if path is not None and not Path(path).is_file():
        yield (
            f"tokenizer.path={path}: no such file (working directory {Path.cwd()}). Give a SentencePiece "
            f"tokenizer.model, or null to train one on the run's own text."
        )


def _tokenizer_problems(config: RunConfig) -> Iterator[str]:
    for name in config.tokenizer.accept_loss:
        if name not in LOSSES:
            nearest = did_you_mean(name, LOSSES)
            yield f"tokenizer.accept_loss: {name!r} is no kind of loss.{nearest} Known: {', '.join(LOSSES)}."


def _side_problems(config: RunConfig) -> Iterator[str]:
    if not config.track.jsonl.enabled:
        yield (
            "track.jsonl.enabled=false: metrics.jsonl is what resumes and reports are made from, it cannot be "
            "switched off. Leave it true; the other views may be off."
        )
    if config.engine.overlap_param_gather and not config.engine.distributed_optimizer:
        yield (
            "engine.overlap_param_gather=true gathers the shards of the distributed optimizer, but "
            "engine.distributed_optimizer=false. Set engine.overlap_param_gather=false too."
        )
    yield from _tier_problems(config)
    yield from _checkpoint_problems(config)


def _checkpoint_problems(config: RunConfig) -> Iterator[str]:
    checkpoint = config.checkpoint
    if any(step < 0 for step in checkpoint.early):
        yield f"checkpoint.early={checkpoint.early} must be steps of 0 or more."
    yield from template_problems("checkpoint.export_name", checkpoint.export_name)
    if checkpoint.hub_repository is not None:
        yield from template_problems("checkpoint.hub_repository", checkpoint.hub_repository)
        if checkpoint.export == "none":
            yield (
                f"checkpoint.hub_repository={checkpoint.hub_repository} has nothing to push: checkpoint.export=none. "
                f"Set checkpoint.export=all or last, or checkpoint.hub_repository=null."
            )
    yield from _start_problems(config)


def _start_problems(config: RunConfig) -> Iterator[str]:
    start, source = config.checkpoint.start_step, config.checkpoint.start_from
    if start and source is None:
        yield (
            f"checkpoint.start_step={start} says how long the weights of checkpoint.start_from have been trained, "
            f"which is null. Name them, or leave it 0."
        )


def _tier_problems(config: RunConfig) -> Iterator[str]:
    probe = config.probe
    if probe.budget is not None:
        try:
            parse_share(probe.budget, key="probe.budget")
        except ConfigError as error:
            yield from error.problems
        if probe.milestones is not None:
            yield (
                f"probe.budget={probe.budget} and probe.milestones={probe.milestones!r} both choose what is scored. "
                f"Set one of them to null."
            )
    elif probe.fast_plan is not None and probe.milestones is None:
        yield (
            f"probe.fast_plan={probe.fast_plan} is for the fast tier, which is scored with probe.milestones or "
            f"probe.budget only. Set one of them, or probe.fast_plan=null."
        )
    if probe.mode != "inline" and (probe.budget is not None or probe.milestones is not None):
        yield (
            f"probe.mode={probe.mode} scores nothing during training, so that probe.budget and probe.milestones have "
            f"nothing to choose. Set them to null, or probe.mode=inline."
        )
