"""From `engine.name` to an engine; the only place that knows which engines there are.

What an engine cannot combine is refused here, before its package is imported and any group exists.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from pretrain.config.checks import parallel_problems
from pretrain.config.grid import grid_problems
from pretrain.config.run import RunConfig
from pretrain.engine.base import CheckpointScorer, Engine
from pretrain.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def check_machine(config: RunConfig) -> list[str]:
    """What this machine lacks for the chosen options; empty when it can run them. Loads torch."""
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


def check_capabilities(config: RunConfig, *, world_size: int) -> list[str]:
    """Problems of this layout and precision under the chosen engine; empty when it can run."""
    parallel, train, problems = config.parallel, config.train, []
    if config.engine.name != "megatron":
        return [f"engine.name={config.engine.name!r} is not known. Allowed: 'megatron'."]
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
    """The engine of this run; `check_capabilities` has passed. Every rank calls it once."""
    from pretrain.engine.megatron.engine import MegatronEngine

    return MegatronEngine(config, spec, device)


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
    return problems + check_machine(config)


def build_scorer(config: RunConfig, spec: ModelSpec, device: torch.device) -> CheckpointScorer:
    """A model that only scores, without weights yet. Every rank calls it once.

    Args:
        config: of it only `parallel`, `precision`, `engine.transformer_engine`, `run.seed` and
            `train.sequence_length` count; data parallel is what remains of the processes.
        spec: the model.
        device: where this rank computes.

    """
    from pretrain.engine.megatron.scorer import MegatronScorer

    return MegatronScorer(config, spec, device)
