"""What each engine refuses, before any process group exists, and the README's table of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.load import compose
from pretrain.config.run import RunConfig
from pretrain.engine.build import check_capabilities, check_machine
from pretrain.engine.capabilities import MEGATRON, Capabilities, table
from pretrain.engine.deepspeed.ds_config import build_ds_config

README = Path(__file__).parents[3] / "README.md"


def test_the_table_of_the_readme_is_current() -> None:
    text = README.read_text()
    start, end = "<!-- capabilities -->\n", "\n<!-- /capabilities -->"
    assert text[text.index(start) + len(start) : text.index(end)] == table()


def configured(engine: str, *overrides: str) -> RunConfig:
    return compose(["experiment=demo", f"engine={engine}", *overrides])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_of_the_demo_can_run(stage: int) -> None:
    config = configured(f"deepspeed_zero{stage}", *(["precision=fp32"] if stage == 0 else []))
    assert check_capabilities(config, world_size=2) == []
    assert check_machine(config) == []


REFUSED = {
    "pipeline": ("deepspeed_zero1", ["parallel.pipeline=2"], "parallel.pipeline=2 is not supported"),
    "sequence": (
        "deepspeed_zero1",
        ["parallel.tensor=2", "parallel.sequence=true"],
        "parallel.sequence=true is not supported",
    ),
    "context": ("deepspeed_zero1", ["parallel.context=2"], "parallel.context=2 is not supported"),
    "distributed optimizer": (
        "deepspeed_zero2",
        ["engine.distributed_optimizer=true"],
        "engine.distributed_optimizer=true is not supported by engine.name=deepspeed: it shards what ZeRO shards",
    ),
    "parameter gather": ("deepspeed_zero2", ["engine.overlap_param_gather=true"], "engine.overlap_param_gather=true"),
    "TransformerEngine": ("deepspeed_zero1", ["engine.transformer_engine=true"], "engine.transformer_engine=true"),
    "stage 0 in bf16": ("deepspeed_zero0", ["precision=bf16"], "sums gradients in bf16"),
    "stage 4": ("deepspeed_zero1", ["engine.zero_stage=4"], "engine.zero_stage=4 is no ZeRO stage"),
    "no stage": ("deepspeed_zero1", ["engine.zero_stage=null"], "engine.zero_stage=null is no ZeRO stage"),
    "NVMe": ("deepspeed_zero2", ["engine.offload_optimizer=nvme"], "accepts it and writes nothing"),
    "NVMe at stage 3": ("deepspeed_zero3", ["engine.offload_parameters=nvme"], "cannot be reached by a checkpoint"),
    "optimizer at stage 0": (
        "deepspeed_zero0",
        ["engine.offload_optimizer=cpu"],
        "needs engine.zero_stage 1 or 2 or 3",
    ),
    "parameters at stage 2": ("deepspeed_zero2", ["engine.offload_parameters=cpu"], "needs engine.zero_stage 3, not 2"),
    "overlap at stage 0": ("deepspeed_zero0", ["engine.overlap_grad_reduce=true"], "nothing to overlap"),
    "buckets at stage 0": ("deepspeed_zero0", ["engine.bucket_size=1000"], "engine.bucket_size=1000 is not read"),
    "a key of ours": (
        "deepspeed_zero1",
        ["engine.deepspeed.gradient_clipping=2.0"],
        "engine.deepspeed.gradient_clipping is decided by optimizer.grad_clip",
    ),
    "a nested key of ours": (
        "deepspeed_zero1",
        ["engine.deepspeed.zero_optimization.stage=3"],
        "engine.deepspeed.zero_optimization.stage is decided by engine.zero_stage",
    ),
    "a key that would change training": (
        "deepspeed_zero1",
        ["engine.deepspeed.zero_optimization.zero_quantized_gradients=true"],
        "is not supported: gradients are reduced in fp32",
    ),
    "ZeRO without DeepSpeed": ("megatron", ["engine.zero_stage=1"], "is an option of DeepSpeed"),
    "offload without DeepSpeed": ("megatron", ["engine.offload_optimizer=cpu"], "is an option of DeepSpeed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_cannot_combine_is_refused_with_the_reason(case: str) -> None:
    engine, overrides, expected = REFUSED[case]
    problems = check_capabilities(configured(engine, *overrides), world_size=2)
    assert len([problem for problem in problems if expected in problem]) == 1, problems


LACKING: dict[str, tuple[list[str], str]] = {
    "grouped_query": (["model.num_query_groups=2"], "model.num_query_groups=2 is not supported"),
    "tied_embeddings": (["model.tie_embeddings=true"], "model.tie_embeddings=true is not supported"),
    "z_loss": (["optimizer.z_loss=1e-4"], "optimizer.z_loss=0.0001 is not supported"),
    "batch_ramp": (
        ["train.batch_ramp=[{until: 10 steps, global_batch_size: 8}]"],
        "train.batch_ramp is not supported",
    ),
    "dynamics": (["track.dynamics.every=10 steps"], "track.dynamics.every is not supported"),
    "document_mask": (["data.document_mask=true"], "data.document_mask=true is not supported"),
    "weight_gradients": (["kernels.weight_gradients=accumulated"], "kernels.weight_gradients=accumulated is not"),
    "fused_optimizer": (["kernels.optimizer=fused"], "kernels.optimizer=fused is not supported"),
    "cuda_graphs": (["kernels.cuda_graphs=true"], "kernels.cuda_graphs=true is not supported with engine.name"),
    "fp8": (["precision.fp8=true", "precision=bf16"], "precision.fp8=true is not supported"),
    "distributed_optimizer": ([], "engine.distributed_optimizer=true is not supported"),
    "overlap_param_gather": ([], "engine.overlap_param_gather=true is not supported"),
    "transformer_engine": (["engine.transformer_engine=true"], "engine.transformer_engine=true is not supported"),
    "tensor": (["parallel.tensor=2"], "parallel.tensor=2 is not supported"),
    "sequence": (["parallel.tensor=2", "parallel.sequence=true"], "parallel.sequence=true is not supported"),
    "context": (["parallel.context=2"], "parallel.context=2 is not supported"),
    "pipeline": (["parallel.pipeline=2"], "parallel.pipeline=2 is not supported"),
    "virtual_pipeline": (
        ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
        "parallel.virtual_pipeline=2 is not supported",
    ),
}
"""What a configuration asks for that only this flag of `Capabilities` allows, and how the refusal begins."""


@pytest.mark.parametrize("flag", LACKING)
def test_an_engine_without_a_capability_is_refused_what_needs_it(flag: str) -> None:
    overrides, expected = LACKING[flag]
    config = configured("megatron", *overrides)
    assert not [one for one in check_capabilities(config, world_size=4) if expected in one]
    lacking = dataclasses.replace(MEGATRON, **{flag: False})
    problems = check_capabilities(config, world_size=4, can=lacking)
    assert len([problem for problem in problems if expected in problem]) == 1, problems


def test_every_flag_of_the_capabilities_is_refused_somewhere() -> None:
    flags = {one.name for one in dataclasses.fields(Capabilities) if isinstance(getattr(MEGATRON, one.name), bool)}
    assert flags == set(LACKING)


def test_an_engine_is_refused_a_precision_and_a_recomputation_that_it_lacks() -> None:
    lacking = dataclasses.replace(MEGATRON, precisions=("fp32",), recompute=("none",))
    config = configured("megatron", "precision=bf16", "engine.recompute=full")
    problems = check_capabilities(config, world_size=1, can=lacking)
    assert len(problems) == 2
    assert any(one.startswith("precision.compute=bf16 is not supported") and "fp32" in one for one in problems)
    assert any(one.startswith("engine.recompute=full is not supported") for one in problems)


def extended(**keys: Any) -> RunConfig:
    config = configured("deepspeed_zero2", "train.micro_batch_size=2", "train.global_batch_size=8")
    config.engine.deepspeed = keys
    return config


def test_keys_we_do_not_know_reach_deepspeed() -> None:
    config = extended(zero_optimization={"reduce_scatter": False}, wall_clock_breakdown=True)
    assert check_capabilities(config, world_size=2) == check_machine(config) == []
    given = build_ds_config(config, data_parallel=2)
    assert given["zero_optimization"] == {
        "stage": 2, "memory_efficient_linear": False, "overlap_comm": True, "reduce_scatter": False,
    }  # fmt: skip
    assert given["wall_clock_breakdown"] is True and given["gradient_accumulation_steps"] == 2


def test_deepspeed_refuses_a_value_it_does_not_allow() -> None:
    (problem,) = check_machine(extended(zero_optimization={"reduce_bucket_size": -1, "reduce_scatter": 7}))
    assert "is refused by DeepSpeed" in problem


def test_a_nested_key_that_deepspeed_does_not_know_is_refused() -> None:
    (problem,) = check_machine(extended(zero_optimization={"reduce_scater": False}))
    assert "reduce_scater" in problem


def test_a_key_that_deepspeed_would_ignore_is_refused_with_the_nearest() -> None:
    (problem,) = check_machine(extended(wall_clock_brakdown=True))
    assert problem.startswith("engine.deepspeed.wall_clock_brakdown is no key of DeepSpeed.")
    assert "wall_clock_breakdown" in problem
