"""Small models under the layouts that tests of plans look at, composed once: Hydra takes longer than the arithmetic."""

from __future__ import annotations

import copy
import functools

import yaml

from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.model.spec import ModelSpec

SMALL = [
    "experiment=demo",
    "precision=fp32",
    "tokenizer.vocab_size=300",  # 384 rows: some are padding
    "model.num_layers=4",
    "model.hidden_size=64",
    "model.ffn_hidden_size=176",
    "model.num_attention_heads=4",
    "model.num_query_groups=2",
    "train.sequence_length=32",
    "train.micro_batch_size=2",
    "train.global_batch_size=8",
]

COVERED = [
    ((), 4),
    (("model.tie_embeddings=true",), 2),
    (("parallel.tensor=2", "parallel.sequence=true"), 4),
    (("parallel.pipeline=4",), 8),
    (("parallel.pipeline=2", "parallel.virtual_pipeline=2", "train.micro_batch_size=1"), 4),
    (("parallel.tensor=2", "parallel.pipeline=2", "parallel.context=2", "model.tie_embeddings=true"), 16),
]

ONE_MICROBATCH = ("train.micro_batch_size=8", "train.global_batch_size=8")
"""Nothing else is in flight; large enough for what is left out of the formula to vanish."""

FORWARDS = [
    ((), 1, 0),
    (("precision.compute=bf16",), 1, 0),
    (("parallel.tensor=2",), 2, 0),
    (("parallel.tensor=2", "parallel.sequence=true"), 2, 1),
    (("parallel.pipeline=2",), 2, 0),
    (("parallel.pipeline=2", "precision.compute=bf16"), 2, 1),
    (("parallel.context=2",), 2, 0),
    (("engine.recompute=selective",), 1, 0),
    (("engine.recompute=full",), 1, 0),
    (("engine.recompute=full", "parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"), 4, 2),
    (("kernels.layers=fused",), 1, 0),
    (("kernels.layers=fused", "precision.compute=bf16", "engine.recompute=selective"), 1, 0),
    (("kernels.layers=fused", "parallel.tensor=2", "parallel.sequence=true"), 2, 1),
    (("kernels.layers=fused", "parallel.context=2"), 2, 0),
    (("kernels.layers=fused", "precision.compute=bf16", "kernels.loss=chunked"), 1, 0),
]

OPTIMIZERS = [
    (("precision.compute=bf16",), 4),
    (("precision.compute=fp32",), 4),
    (("precision.compute=bf16", "engine.distributed_optimizer=false", "engine.overlap_param_gather=false"), 4),
    (("precision.compute=fp32", "engine.distributed_optimizer=false", "engine.overlap_param_gather=false"), 4),
    (("precision.compute=bf16", "parallel.context=2"), 4),
]

LINES = [
    ("experiment=amber_7b", "cluster=a100_80gb"),
    (
        "experiment=k2_65b",
        "world_size=480",
        "cluster=a100_40gb",
        "train.micro_batch_size=4",
        "kernels=plain",
        "--layouts=3",
    ),
    ("experiment=demo", "data.sources.qa.expected_tokens=5000", "data.sources.web.expected_tokens=1000000"),
]
"""Command lines of the planner: a run that fits its devices, one that does not, and one on nobody knows what."""

MODEL = [
    "experiment=demo",
    "tokenizer.vocab_size=1000",
    "model.num_layers=4",
    "model.hidden_size=256",
    "model.ffn_hidden_size=688",
    "model.num_attention_heads=8",
    "model.num_query_groups=4",
    "train.sequence_length=128",
    "train.micro_batch_size=4",
    "train.global_batch_size=8",
]
"""Large enough for state and activations to outweigh indices, masks and padding of buffers."""

STEPS = [["precision=bf16", "train.global_batch_size=4"]]
"""Steps of one process that are measured every time; the other layouts are slow."""


def small(overrides: tuple[str, ...] = ()) -> RunConfig:
    """The small model with values changed, as overrides that name a field of a section."""
    config = copy.deepcopy(_composed())
    for override in overrides:
        key, value = override.split("=")
        section, field = key.split(".")
        setattr(getattr(config, section), field, yaml.safe_load(value))
    return config


@functools.cache
def _composed() -> RunConfig:
    return compose(SMALL)


def spec_of(config: RunConfig) -> ModelSpec:
    """Sizes of a configuration's model."""
    return ModelSpec.from_config(config.model, config.tokenizer.vocab_size)
