"""What `kernels` and fp8 come to on a CPU, and what is refused with which remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.engine.build import check_capabilities, check_machine
from pretrain.engine.kernels import choose
from pretrain.model.kernels import Kernels
from pretrain.model.layers.weight_gradient import can_accumulate

CPU = torch.device("cpu")


def configured(**values: Any) -> RunConfig:
    """A configuration with `group__key=value`."""
    config = RunConfig()
    for name, value in values.items():
        group, key = name.split("__")
        setattr(getattr(config, group), key, value)
    if config.engine.name == "deepspeed":
        config.engine.zero_stage = 1
        config.engine.distributed_optimizer = config.engine.overlap_param_gather = False
    return config


def test_a_cpu_gets_the_plain_ones_and_is_told_why_in_one_line() -> None:
    kernels = choose(RunConfig(), CPU)
    assert kernels == Kernels()
    (line,) = kernels.lines()
    assert "layers=plain" in line and "optimizer=plain" in line and "CPU" in line


def test_what_is_named_is_taken_and_not_explained() -> None:
    names = {"layers": "fused", "loss": "chunked", "weight_gradients": "accumulated", "optimizer": "fused"}
    config = configured(**{f"kernels__{name}": value for name, value in names.items()}, kernels__compile=True)
    config.engine.recompute = "selective"
    kernels = choose(config, CPU)
    assert {name: getattr(kernels, name) for name in names} == names
    assert kernels.compile and kernels.recompute and not kernels.reasons and not list(kernels.lines())


def test_whether_products_go_straight_into_the_sum_is_tried_on_the_device() -> None:
    assert can_accumulate(CPU)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kernels__attention": "flash", "precision__compute": "fp32"}, ["bf16 only", "efficient"]),
        ({"kernels__optimizer": "fused", "engine__name": "deepspeed"}, ["engine.adam", "auto"]),
        ({"kernels__weight_gradients": "accumulated", "engine__name": "deepspeed"}, ["itself", "auto"]),
        ({"kernels__layers": "fused", "engine__transformer_engine": True}, ["exclude each other"]),
        (
            {f"kernels__{k}": v for k, v in [("layers", "plain"), ("loss", "whole"), ("optimizer", "plain")]}
            | {"kernels__compile": True},
            ["nothing to compile"],
        ),
        ({"kernels__cuda_graphs": True, "engine__recompute": "full"}, ["engine.recompute=full", "captured once"]),
        ({"kernels__cuda_graphs": True, "kernels__layers": "plain"}, ["kernels.layers=plain"]),
        ({"kernels__cuda_graphs": True, "parallel__tensor": 2}, ["split over ranks"]),
        ({"precision__fp8": True, "precision__compute": "fp32"}, ["precision=bf16"]),
        ({"precision__fp8": True, "model__ffn_hidden_size": 11_004}, ["model.ffn_hidden_size = 11004", "16"]),
        ({"precision__fp8": True, "engine__name": "deepspeed"}, ["engine.name=megatron"]),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], words: list[str]) -> None:
    problems = check_capabilities(configured(**values), world_size=2)
    assert any(all(word in problem for word in words) for problem in problems), problems


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has them")
@pytest.mark.parametrize(("name", "value"), [("attention", "cudnn"), ("cuda_graphs", True)])
def test_what_needs_a_gpu_is_refused_without_one(name: str, value: Any) -> None:
    (problem,) = check_machine(configured(**{f"kernels__{name}": value}))
    assert problem.startswith(f"kernels.{name}=") and "CUDA device" in problem and "Set it to" in problem


def test_a_compiler_is_asked_for_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    if not torch.cuda.is_available():
        (problem,) = check_machine(configured(kernels__compile=True))
        assert "C++ compiler" in problem and "null" in problem
