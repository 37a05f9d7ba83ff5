"""What each engine can combine: plain data, which the refusals of `build.py` and the README's table read.

A login node can answer from it before any engine is imported. What every engine must do by the contract of
`pretrain.engine.base.Engine` (score, generate) is no capability. `python -m pretrain.engine.capabilities` prints the
table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.arguments import CommandParser
from pretrain.terminal import accept_every_character


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can combine; `engine/build.py` refuses the rest, naming the reason.

    Attributes:
        tensor, sequence, context, pipeline, virtual_pipeline: whether the parallelism is supported.
        distributed_optimizer: whether Megatron-core's can be used.
        overlap_param_gather: whether updated weights can be gathered while the next forward pass runs.
        transformer_engine: whether its layers can be used.
        zero_stages: allowed values of `engine.zero_stage`; empty where there is no such thing.
        bf16_zero_stages: those that train in bf16.
        offload_optimizer_stages, offload_parameters_stages: those whose state can live in host memory.
        weight_gradients, fused_optimizer, cuda_graphs: whether `kernels.weight_gradients=accumulated`,
            `kernels.optimizer=fused` and `kernels.cuda_graphs` can be had.
        fp8: whether Linear layers can multiply in fp8.
        precisions: supported values of `precision.compute`.
        recompute: supported values of `engine.recompute`.
        document_mask: whether tokens can be kept to their own document.
        grouped_query, tied_embeddings: features of the model.
        z_loss, batch_ramp, dynamics: features of the step.
    """

    tensor: bool
    sequence: bool
    context: bool
    pipeline: bool
    virtual_pipeline: bool
    distributed_optimizer: bool
    overlap_param_gather: bool
    transformer_engine: bool
    zero_stages: tuple[int, ...]
    bf16_zero_stages: tuple[int, ...]
    offload_optimizer_stages: tuple[int, ...]
    offload_parameters_stages: tuple[int, ...]
    weight_gradients: bool
    fused_optimizer: bool
    cuda_graphs: bool
    fp8: bool
    precisions: tuple[str, ...] = ("bf16", "fp32")
    recompute: tuple[str, ...] = ("none", "selective", "full")
    document_mask: bool = True
    grouped_query: bool = True
    tied_embeddings: bool = True
    z_loss: bool = True
    batch_ramp: bool = True
    dynamics: bool = True


MEGATRON = Capabilities(
    tensor=True,
    sequence=True,
    context=True,
    pipeline=True,
    virtual_pipeline=True,
    distributed_optimizer=True,
    overlap_param_gather=True,
    transformer_engine=True,
    zero_stages=(),
    bf16_zero_stages=(),
    offload_optimizer_stages=(),
    offload_parameters_stages=(),
    weight_gradients=True,
    fused_optimizer=True,
    cuda_graphs=True,
    fp8=True,
)

DEEPSPEED = Capabilities(
    tensor=True,
    sequence=False,
    context=False,
    pipeline=False,
    virtual_pipeline=False,
    distributed_optimizer=False,
    overlap_param_gather=False,
    transformer_engine=False,
    zero_stages=(0, 1, 2, 3),
    bf16_zero_stages=(1, 2, 3),
    offload_optimizer_stages=(1, 2, 3),
    offload_parameters_stages=(3,),
    weight_gradients=False,
    fused_optimizer=False,
    cuda_graphs=False,
    fp8=False,
)

ENGINES = {"megatron": MEGATRON, "deepspeed": DEEPSPEED}
"""By `engine.name`."""


def table() -> str:
    """Which features combine with which engine, in Markdown: a column for Megatron and one per ZeRO stage."""
    columns: list[tuple[str, Capabilities, int | None]] = [("Megatron", MEGATRON, None)]
    columns += [(f"ZeRO-{stage}", DEEPSPEED, stage) for stage in DEEPSPEED.zero_stages]
    rows: list[tuple[str, Callable[[Capabilities, int | None], bool]]] = [
        ("tensor parallel", lambda can, _: can.tensor),
        ("sequence parallel", lambda can, _: can.sequence),
        ("context parallel", lambda can, _: can.context),
        ("pipeline, interleaved too", lambda can, _: can.pipeline and can.virtual_pipeline),
        ("Megatron's distributed optimizer", lambda can, _: can.distributed_optimizer),
        ("TransformerEngine's layers", lambda can, _: can.transformer_engine),
        ("fp32", lambda can, _: "fp32" in can.precisions),
        ("bf16, summed and kept in fp32", lambda can, stage: stage is None or stage in can.bf16_zero_stages),
        ("optimizer on the CPU", lambda can, stage: stage in can.offload_optimizer_stages),
        ("weights on the CPU", lambda can, stage: stage in can.offload_parameters_stages),
        ("recomputed activations", lambda can, _: len(can.recompute) > 1),
        ("grouped-query attention, tied embeddings", lambda can, _: can.grouped_query and can.tied_embeddings),
        ("z-loss, batch ramp", lambda can, _: can.z_loss and can.batch_ramp),
        ("document mask", lambda can, _: can.document_mask),
        ("dynamics per layer", lambda can, _: can.dynamics),
        ("fp8, CUDA graphs", lambda can, _: can.fp8 and can.cuda_graphs),
        ("validation, probes, generation", lambda *_: True),  # no engine is without
    ]
    lines = ["| | " + " | ".join(name for name, *_ in columns) + " |", "|---|" + ":-:|" * len(columns)]
    for name, holds in rows:
        cells = ["yes" if holds(can, stage) else "–" for _, can, stage in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    accept_every_character()
    CommandParser("python -m pretrain.engine.capabilities", description="Prints the table.").read(sys.argv[1:])
    print(table())
