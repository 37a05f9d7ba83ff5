"""What a rank is planned to need, against every tensor that a real engine holds during a step, on real processes.

Attention, matrix products and the loss are this machine's; the norm is made to keep what CUDA's kernel keeps, and AdamW
goes over all tensors at once as it does on CUDA: see `memory_workers`.
"""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.config.load import compose
from pretrain.engine.layout import ParallelLayout
from pretrain.plan.memory import rank_memory
from tests.support.ranks import run_ranks
from tests.unit.plan.cases import MODEL, STEPS, spec_of

BF16 = ["precision=bf16"]
FULL = ["engine.recompute=full"]
TENSOR = ["parallel.tensor=2"]
SEQUENCE = [*TENSOR, "parallel.sequence=true"]
PIPELINE = ["parallel.pipeline=2"]
VIRTUAL = [*PIPELINE, "parallel.virtual_pipeline=2"]
CONTEXT = ["parallel.context=2"]
REPLICATED = ["engine.distributed_optimizer=false", "engine.overlap_param_gather=false"]


def zero(stage: int) -> list[str]:
    # DeepSpeed's own buckets are 2 GB, more than all the rest here.
    return [f"engine=deepspeed_zero{stage}", *(["engine.bucket_size=1000000"] if stage else [])]


ALONE = [[], BF16, FULL, [*FULL, *BF16], ["engine.recompute=selective"], [*BF16, "optimizer.z_loss=1e-4"], zero(0)]
TWO = [
    [],
    BF16,
    REPLICATED,
    [*REPLICATED, *BF16],
    TENSOR,
    [*TENSOR, *BF16],
    SEQUENCE,
    [*SEQUENCE, *BF16],
    [*SEQUENCE, *BF16, *FULL],
    PIPELINE,
    [*PIPELINE, *BF16],
    [*PIPELINE, *BF16, *FULL],
    VIRTUAL,
    [*VIRTUAL, *BF16],
    CONTEXT,
    [*CONTEXT, *BF16],
]
ZERO = [zero(0), *[[*zero(stage), *precision] for stage in (1, 2, 3) for precision in ([], BF16)]]
SEVERAL = ["train.global_batch_size=16"]
"""Two microbatches on each of two data-parallel ranks, whose gradients are summed; else a step of one."""


def check(ranks: list[list[dict[str, int]]], cases: list[list[str]]) -> None:
    off = []
    for number, overrides in enumerate(cases):
        config = compose([*MODEL, *overrides])
        spec, layout = spec_of(config), ParallelLayout.create(config, world_size=len(ranks))
        for rank, found in enumerate(one[number] for one in ranks):
            planned = rank_memory(config, spec, layout, stage=layout.coordinates(rank).pipeline)
            deviation = planned.total / found["peak"] - 1
            print(f"rank {rank} of {len(ranks)}: {deviation:+.1%} {' '.join(overrides)}")
            if abs(deviation) > 0.1:
                off.append((overrides, rank, planned, found))
            if config.engine.name == "megatron":
                activation = 4 * layout.micro_batch_size * config.train.sequence_length * spec.hidden_size
                state = planned.weights + planned.gradients + planned.optimizer
                exchanged = 4 * activation if layout.pipeline > 1 or config.parallel.sequence else 0
                # On top: padding of buffers, and what stages last exchanged or sequence parallelism gathered.
                assert state <= found["held"] <= 1.01 * state + exchanged, overrides
    assert not off


def run(cases: list[list[str]], world_size: int) -> list[list[dict[str, int]]]:
    overrides = [[*MODEL, *case] for case in cases]
    return run_ranks("tests.unit.plan.memory_workers:measure", world_size, overrides)


def test_a_process_alone_needs_what_is_planned(measured: dict[str, Any]) -> None:
    check([measured["steps"]], STEPS)


@pytest.mark.slow
def test_one_process_needs_what_is_planned_in_every_mode() -> None:
    check(run(ALONE, 1), ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [TWO[::2], TWO[1::2]])
def test_two_processes_need_what_is_planned_in_every_layout(cases: list[list[str]]) -> None:
    check(run(cases, 2), cases)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], SEVERAL])
def test_two_processes_need_what_is_planned_at_every_stage_of_zero(more: list[str]) -> None:
    cases = [[*case, *more] for case in ZERO]
    check(run(cases, 2), cases)


@pytest.mark.slow
def test_four_processes_need_what_is_planned() -> None:
    cases = [[*SEQUENCE, *PIPELINE, *BF16, *SEVERAL], [*PIPELINE, *SEVERAL], [*TENSOR, *BF16]]
    check(run(cases, 4), cases)
