"""What of `kernels` and `precision.fp8` cannot be had: with the other options of a run, or on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

from pretrain.config.kernels import AUTO
from pretrain.config.run import RunConfig
from pretrain.engine.capabilities import Capabilities

_FP8_MULTIPLE = 16
"""Sizes of an fp8 product's matrices must be multiples of this."""


def kernel_problems(config: RunConfig, can: Capabilities) -> Iterator[str]:
    """Problems with the other options of the run, and with what its engine can combine; needs no torch."""
    kernels, engine, bf16 = config.kernels, config.engine, config.precision.compute == "bf16"
    if kernels.attention in ("cudnn", "flash") and not bf16:
        yield (
            f"kernels.attention={kernels.attention} computes in bf16 only, but precision.compute=fp32. Use efficient, "
            f"math or auto, or precision=bf16."
        )
    for name, value, possible, instead in (
        ("weight_gradients", "accumulated", can.weight_gradients, "it sums gradients itself"),
        ("optimizer", "fused", can.fused_optimizer, "engine.adam decides there which AdamW runs"),
    ):
        if getattr(kernels, name) == value and not possible:
            yield f"kernels.{name}={value} is not supported by engine.name={engine.name}: {instead}. Set it to auto."
    if engine.transformer_engine:
        for name, value in (("layers", "fused"), ("weight_gradients", "accumulated")):
            if getattr(kernels, name) == value:
                yield (
                    f"kernels.{name}={value} and engine.transformer_engine=true exclude each other: TransformerEngine "
                    f"brings its own. Set one of them to auto or false."
                )
    if kernels.compile and kernels.layers == "plain" and kernels.loss == "whole" and kernels.optimizer == "plain":
        yield "kernels.compile=true has nothing to compile: layers, loss and optimizer are plain. Set it to null."
    if kernels.cuda_graphs:
        yield from _graph_problems(config, can)
    if config.precision.fp8:
        yield from _fp8_problems(config, can)


def machine_kernel_problems(config: RunConfig) -> list[str]:
    """What this machine lacks; empty when it has all. Loads torch."""
    import torch

    kernels, problems = config.kernels, []
    on_gpu = torch.cuda.is_available()
    if kernels.attention != AUTO and kernels.attention != "math" and not on_gpu:
        problems.append(
            f"kernels.attention={kernels.attention}: its kernels need a CUDA device, and this machine shows none. "
            f"Set it to auto or math."
        )
    if kernels.cuda_graphs and not on_gpu:
        problems.append("kernels.cuda_graphs=true needs a CUDA device, and this machine shows none. Set it to false.")
    if kernels.compile and not on_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        problems.append(
            "kernels.compile=true needs a C++ compiler on a CPU, and there is none. Install g++ (or name one in CXX), "
            "or set it to null."
        )
    if on_gpu and kernels.compile is not False and importlib.util.find_spec("triton") is None:
        problems.append(
            "kernels.compile needs the package triton on a GPU, and it is not installed in this environment. Install "
            "the one that this torch was built with, or set kernels.compile=false."
        )
    if kernels.weight_gradients == "accumulated" and on_gpu:
        from pretrain.model.layers.weight_gradient import can_accumulate

        if not can_accumulate(torch.device("cuda")):
            problems.append(
                f"kernels.weight_gradients=accumulated adds bf16 products to fp32 sums, and torch {torch.__version__} "
                f"does not on this GPU. Set it to auto, or use a newer torch."
            )
    if config.precision.fp8 and on_gpu and torch.cuda.get_device_capability() < (8, 9):
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        problems.append(
            f"precision.fp8=true needs a GPU of compute capability 8.9 or newer; this one has {found}. Set it to false."
        )
    return problems


def _graph_problems(config: RunConfig, can: Capabilities) -> Iterator[str]:
    engine, parallel = config.engine, config.parallel
    rules = (
        (
            config.kernels.layers == "plain",
            "kernels.layers=plain",
            "scoring must get around them, which fused layers do",
        ),
        (not can.cuda_graphs, f"engine.name={engine.name}", "the graphs are Megatron's"),
        (
            max(parallel.tensor, parallel.pipeline, parallel.context) > 1,
            "a model that is split over ranks",
            "exchanges between ranks would be captured",
        ),
        (
            engine.recompute != "none",
            f"engine.recompute={engine.recompute}",
            "backward would run what was captured once",
        ),
        (engine.transformer_engine, "engine.transformer_engine=true", "its graphs are made another way"),
        (config.data.document_mask, "data.document_mask=true", "the mask is another one in every microbatch"),
        (config.precision.fp8, "precision.fp8=true", "the combination has not been run"),
    )
    for holds, what, reason in rules:
        if holds:
            yield f"kernels.cuda_graphs=true is not supported with {what}: {reason}. Set it to false."


def _fp8_problems(config: RunConfig, can: Capabilities) -> Iterator[str]:
    model, parallel = config.model, config.parallel
    if config.precision.compute != "bf16":
        yield (
            f"precision.fp8=true multiplies in fp8 what is otherwise bf16, but precision.compute="
            f"{config.precision.compute}. Use precision=bf16, or set it to false."
        )
    if config.engine.transformer_engine:
        yield "precision.fp8=true replaces Megatron's own Linear layers, not engine.transformer_engine's. Choose one."
    if not can.fp8:
        yield (
            f"precision.fp8=true is not supported by engine.name={config.engine.name}: it has only been run under "
            f"engine.name=megatron. Set it to false."
        )
    groups = model.num_query_groups or model.num_attention_heads
    head = model.hidden_size // max(model.num_attention_heads, 1)
    sizes = {
        "model.hidden_size": model.hidden_size,
        "a rank's part of model.ffn_hidden_size": model.ffn_hidden_size // parallel.tensor,
        "a rank's part of the query heads": model.hidden_size // parallel.tensor,
        "a rank's part of queries, keys and values": (model.num_attention_heads + 2 * groups) * head // parallel.tensor,
        "tokens of a microbatch on a rank": config.train.micro_batch_size
        * (config.train.sequence_length // parallel.context),
    }
    for what, size in sizes.items():
        if size % _FP8_MULTIPLE:
            yield f"precision.fp8=true: {what} = {size} must be a multiple of {_FP8_MULTIPLE}, as fp8 products need."
