"""From `engine.name` to an engine; the only place that knows which engines there are.

What an engine cannot combine is refused here, before its package is imported and any group exists.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretrain.config.checks import parallel_problems
from pretrain.config.engine import EngineConfig
from pretrain.config.grid import grid_problems
from pretrain.config.run import RunConfig
from pretrain.engine.base import CheckpointScorer, Engine
from pretrain.engine.capabilities import ENGINES, Capabilities
from pretrain.engine.deepspeed import planning as deepspeed_planning
from pretrain.engine.deepspeed.ds_config import own_key_problems
from pretrain.engine.footprint import Footprint, Planning
from pretrain.engine.kernel_checks import kernel_problems, machine_kernel_problems
from pretrain.engine.layout import ParallelLayout
from pretrain.engine.megatron import planning as megatron_planning
from pretrain.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch

_PLANNING: dict[str, Planning] = {"megatron": megatron_planning, "deepspeed": deepspeed_planning}
"""By `engine.name`."""


def check_machine(config: RunConfig) -> list[str]:
    """What this machine lacks for the chosen options; empty when it can run them. Loads torch, or DeepSpeed."""
    problems = machine_kernel_problems(config)
    if config.engine.name == "deepspeed":
        from pretrain.engine.deepspeed.ds_config import validation_problems

        return problems + validation_problems(config)
    return problems + _transformer_engine_problems(config)


def _transformer_engine_problems(config: RunConfig) -> list[str]:
    if not config.engine.transformer_engine:
        return []
    import torch

    if importlib.util.find_spec("transformer_engine") is None:
        lacks = "the package transformer_engine is not installed in this environment"
        remedy = "Install `transformer-engine[pytorch]` for this CUDA version"
    elif not torch.cuda.is_available():
        lacks, remedy = "its kernels need a CUDA device, and this machine shows none", "Run where there is one"
    else:
        return []
    return [f"engine.transformer_engine=true: {lacks}. {remedy}, or set it to false."]


def check_capabilities(config: RunConfig, *, world_size: int, can: Capabilities | None = None) -> list[str]:
    """Problems of this layout and these options under the chosen engine; empty when it can run.

    Args:
        config: the resolved configuration.
        world_size: processes of the run.
        can: what the engine can combine; None: what is known of the one that the configuration names.
    """
    can = ENGINES[config.engine.name] if can is None else can
    problems = [
        *_layout_problems(config, can),
        *_option_problems(config, can),
        *_feature_problems(config, can),
        *kernel_problems(config, can),
    ]
    if config.engine.name == "deepspeed":
        problems += own_key_problems(config.engine.deepspeed)
    return problems or _megatron_problems(config, world_size)


def _layout_problems(config: RunConfig, can: Capabilities) -> Iterator[str]:
    parallel, name = config.parallel, config.engine.name
    asked = {
        "tensor": (parallel.tensor, 1, "every rank holds whole weight matrices"),
        "pipeline": (parallel.pipeline, 1, "DeepSpeed's pipeline takes a model of its own kind, not GPTModel"),
        "virtual_pipeline": (parallel.virtual_pipeline, 1, "there are no pipeline stages"),
        "context": (parallel.context, 1, "ZeRO shards over one group, and gradients here are summed over two"),
        "sequence": (parallel.sequence, False, "it leaves gradients of norms to be summed over the tensor-parallel "
                     "ranks, which Megatron's own reduction does and DeepSpeed's does not"),
    }  # fmt: skip
    for key, (value, off, reason) in asked.items():
        if value != off and not getattr(can, key):
            yield (
                f"parallel.{key}={str(value).lower()} is not supported by engine.name={name}: {reason}. "
                f"Set it to {str(off).lower()}, or choose engine=megatron."
            )


def _option_problems(config: RunConfig, can: Capabilities) -> Iterator[str]:
    engine, compute = config.engine, config.precision.compute
    of_megatron = {
        "distributed_optimizer": "it shards what ZeRO shards already",
        "overlap_param_gather": "it belongs to Megatron's distributed optimizer; ZeRO gathers in its own step",
        "transformer_engine": "TransformerEngine's layers have only been run under Megatron-core",
    }
    for key, reason in of_megatron.items():
        if getattr(engine, key) and not getattr(can, key):
            yield f"engine.{key}=true is not supported by engine.name={engine.name}: {reason}. Set it to false."
    if engine.recompute not in can.recompute:
        yield f"engine.recompute={engine.recompute} is not supported by engine.name={engine.name}."
    if not can.zero_stages:
        yield from _zero_without_deepspeed(config)
        return
    stage = engine.zero_stage
    if stage not in can.zero_stages:
        yield (
            f"engine.zero_stage={'null' if stage is None else stage} is no ZeRO stage. Allowed: "
            f"{', '.join(map(str, can.zero_stages))}; or choose engine=deepspeed_zero0 … deepspeed_zero3."
        )
        return
    if compute == "bf16" and stage not in can.bf16_zero_stages:
        yield (
            f"engine.zero_stage={stage} with precision.compute=bf16 sums gradients in bf16 (a gradient norm 6% off in "
            f"20 steps). Use stage {', '.join(map(str, can.bf16_zero_stages))}, or precision=fp32."
        )
    if stage == 0 and engine.overlap_grad_reduce:
        yield (
            "engine.overlap_grad_reduce=true has nothing to overlap at engine.zero_stage=0, which reduces after the "
            "last backward. Set it to false."
        )
    if stage == 0 and engine.bucket_size is not None:
        yield (
            f"engine.bucket_size={engine.bucket_size} is not read at engine.zero_stage=0, where DeepSpeed reduces in "
            f"buckets of its own. Set it to null."
        )
    offloads = {
        "offload_optimizer": (engine.offload_optimizer, can.offload_optimizer_stages),
        "offload_parameters": (engine.offload_parameters, can.offload_parameters_stages),
    }
    for key, (device, stages) in offloads.items():
        if device == "nvme":
            yield (
                f"engine.{key}=nvme is not supported: below stage 3 DeepSpeed accepts it and writes nothing; at stage "
                f"3 state that is swapped out cannot be reached by a checkpoint. Use cpu."
            )
        elif device != "none" and stage not in stages:
            yield (
                f"engine.{key}={device} needs engine.zero_stage {' or '.join(map(str, stages))}, not {stage}: below, "
                f"DeepSpeed leaves it where it is."
            )


def _feature_problems(config: RunConfig, can: Capabilities) -> Iterator[str]:
    """What the model or the step is asked for and the engine lacks."""
    model, name, compute = config.model, config.engine.name, config.precision.compute
    groups = model.num_query_groups
    asked = {
        "grouped_query": (groups not in (None, model.num_attention_heads), f"model.num_query_groups={groups}", "null"),
        "tied_embeddings": (model.tie_embeddings, "model.tie_embeddings=true", "false"),
        "z_loss": (config.optimizer.z_loss > 0, f"optimizer.z_loss={config.optimizer.z_loss}", "0"),
        "batch_ramp": (bool(config.train.batch_ramp), "train.batch_ramp", "[]"),
        "dynamics": (config.track.dynamics.every is not None, "track.dynamics.every", "null"),
        "document_mask": (config.data.document_mask, "data.document_mask=true", "false"),
    }
    for flag, (wanted, what, off) in asked.items():
        if wanted and not getattr(can, flag):
            yield f"{what} is not supported by engine.name={name}. Set it to {off}, or choose another engine."
    if compute not in can.precisions:
        yield (
            f"precision.compute={compute} is not supported by engine.name={name}. Allowed: "
            f"{', '.join(can.precisions)}; or choose another engine."
        )


def _zero_without_deepspeed(config: RunConfig) -> Iterator[str]:
    engine, plain = config.engine, type(config.engine)()
    for key in ("zero_stage", "offload_optimizer", "offload_parameters", "adam", "deepspeed"):
        if getattr(engine, key) != getattr(plain, key):
            yield (
                f"engine.{key}={getattr(engine, key)} is an option of DeepSpeed, but engine.name={engine.name}. "
                f"Choose engine=deepspeed_zero1, for example, or leave it out."
            )


def _megatron_problems(config: RunConfig, world_size: int) -> list[str]:
    parallel, train, problems = config.parallel, config.train, []
    stages, context = parallel.pipeline, parallel.context
    if parallel.virtual_pipeline > 1:
        data = max(world_size // (parallel.tensor * stages * context), 1)
        sizes = dict.fromkeys([*(stage.global_batch_size for stage in train.batch_ramp), train.global_batch_size])
        for size in sizes:
            microbatches = size // (train.micro_batch_size * data)
            if microbatches % stages:
                problems.append(
                    f"parallel.virtual_pipeline={parallel.virtual_pipeline} needs a number of microbatches that "
                    f"parallel.pipeline={stages} divides: Megatron's interleaved schedule runs them in groups of that "
                    f"size. A global batch of {size} / (train.micro_batch_size={train.micro_batch_size} x {data} "
                    f"data-parallel ranks) = {microbatches}; {microbatches} % {stages} = {microbatches % stages}."
                )
    if parallel.sequence and train.sequence_length // context % parallel.tensor:
        problems.append(
            f"parallel.sequence=true splits {train.sequence_length // context} tokens over parallel.tensor="
            f"{parallel.tensor}, which does not divide them. Change train.sequence_length or set it to false."
        )
    return problems


def build_engine(config: RunConfig, spec: ModelSpec, device: torch.device) -> Engine:
    """The engine of this run; `check_capabilities` and `check_machine` have passed. Every rank calls it once."""
    _say_kernels(config, device)
    if config.engine.name == "deepspeed":
        from pretrain.engine.deepspeed.engine import DeepSpeedEngine

        return DeepSpeedEngine(config, spec, device)
    from pretrain.engine.megatron.engine import MegatronEngine

    return MegatronEngine(config, spec, device)


def _say_kernels(config: RunConfig, device: torch.device) -> None:
    """Rank 0, once: what `kernels` left open, and what it came to."""
    from pretrain.engine.kernels import choose
    from pretrain.launcher import read_launched

    for line in choose(config, device).lines() if read_launched().rank == 0 else ():
        print(line, file=sys.stderr, flush=True)


def footprint(config: RunConfig, layout: ParallelLayout, spec: ModelSpec, *, stage: int) -> Footprint:
    """What the chosen engine takes of the memory of a rank on one pipeline stage; needs no torch."""
    return planning(config.engine).footprint(config, layout, spec, stage=stage)


def planning(engine: EngineConfig) -> Planning:
    """What is known of an engine before it is imported."""
    return _PLANNING[engine.name]


def engine_variants(own: EngineConfig) -> Iterator[EngineConfig]:
    """Every engine and way to share state out that a search over layouts tries: the run's own options, and groups.

    Keys of `engine.deepspeed` could not be taken back by an override: then there is no other engine.
    """
    for name, known in _PLANNING.items():
        if name == own.name:
            yield from known.variants(own)
        elif not own.deepspeed:
            for other in known.variants(None):
                yield dataclasses.replace(other, timeout_minutes=own.timeout_minutes)


def check_scorer(config: RunConfig, spec: ModelSpec, *, world_size: int) -> list[str]:
    """Problems of this layout for scoring a model of these sizes; empty when it can run.

    Args:
        config: as for `build_scorer`.
        spec: the model.
        world_size: processes of the job.
    """
    sizes = RunConfig(parallel=config.parallel)
    sizes.model.num_layers, sizes.model.hidden_size = spec.num_layers, spec.hidden_size
    sizes.model.ffn_hidden_size = spec.ffn_hidden_size
    sizes.model.num_attention_heads = spec.num_attention_heads
    sizes.model.num_query_groups = spec.num_query_groups
    sizes.tokenizer.vocab_size = sizes.model.vocab_multiple = spec.padded_vocab_size
    # Context-parallel ranks score whole rows: no sequence is cut.
    sizes.train.sequence_length = 2 * config.parallel.context * config.parallel.tensor
    problems = [*parallel_problems(sizes), *grid_problems(config.parallel, world_size=world_size)]
    return [*problems, *machine_kernel_problems(config), *_transformer_engine_problems(config)]


def build_scorer(config: RunConfig, spec: ModelSpec, device: torch.device) -> CheckpointScorer:
    """A model that only scores, without weights yet. Every rank calls it once.

    Args:
        config: of it only `parallel`, `precision`, `engine.transformer_engine`, `run.seed` and
            `train.sequence_length` count; data parallel is what remains of the processes.
        spec: the model.
        device: where this rank computes.

    """
    from pretrain.engine.sharded.scorer import ModelScorer

    return ModelScorer(config, spec, device)
