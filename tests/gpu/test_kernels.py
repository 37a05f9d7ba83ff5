"""The fast kernels on one GPU against the plain ones and against Hugging Face: losses, gradients, memory, waits."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.config.load import compose
from pretrain.engine.kernels import choose, planned
from pretrain.engine.sharded.batches import microbatches
from tests.parity.test_layouts import reference, reference_bf16
from tests.parity.workers import FUSED, Layout, batch, build
from tests.support.ranks import run_ranks
from tests.unit.engine import test_batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FAST = FUSED | {"compile": True}
SAME = {
    "fused, fp32": Layout("fused, fp32", micro_batch_size=4, kernels=FAST),
    "fused, bf16": Layout("fused, bf16", compute="bf16", kernels=FAST),
    "fused, bf16, selective": Layout("fused, bf16, selective", compute="bf16", kernels=FAST, recompute="selective"),
    "cudnn": Layout("cudnn", compute="bf16", kernels=FAST | {"attention": "cudnn"}),
    "flash": Layout("flash", compute="bf16", kernels=FAST | {"attention": "flash"}),
    "graphs": Layout("graphs", compute="bf16", kernels=FAST | {"cuda_graphs": True}),
}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    return {name: run_ranks("tests.parity.workers:train", 1, [layout])[0][0] for name, layout in SAME.items()}


@pytest.mark.parametrize("name", SAME)
def test_fast_kernels_train_like_hugging_face(name: str, results: Any) -> None:
    """The tolerances are those of the plain kernels, tests/gpu/test_parity.py."""
    layout = SAME[name]
    oracle = (reference if layout.compute == "fp32" else reference_bf16)(layout, results[name]["start"])
    np.testing.assert_allclose(
        results[name]["losses"], oracle["losses"], rtol=1e-5 if layout.compute == "fp32" else 5e-4
    )


def test_a_step_is_given_to_the_device_without_a_wait() -> None:
    """In one process: the second step and later ones; the first compiles, and chooses kernels."""
    assert run_ranks("tests.gpu.test_kernels:steps_without_waits", 1, None)[0]


def steps_without_waits(_: None) -> bool:
    """A rank: three steps under torch's watch for synchronising calls."""
    from pretrain.engine.job import Job

    built = build(Layout("watched", compute="bf16", kernels=FAST), Job(timeout_minutes=5))
    for number in range(2):
        built.step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [built.engine.train_step(batch(n, built.grid, built.dp_rank), 1e-3) for n in range(2, 5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [one.result().loss for one in pending]
    built.engine.close()
    return all(map(np.isfinite, found)) and all(one.late for one in pending)


def test_microbatches_are_given_to_the_device_without_a_wait() -> None:
    positions = [torch.arange(12, device="cuda")]
    given = test_batches.batch(masked=True)
    list(microbatches(given, positions, dtype=torch.bfloat16))  # the first call makes the copying stream
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = list(microbatches(given, positions, dtype=torch.bfloat16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(part.tokens_BS.cpu(), given.tokens_MBT[number][:, :-1])
        assert part.weights_BS is not None and given.weights_MBS is not None
        np.testing.assert_array_equal(part.weights_BS.cpu(), given.weights_MBS[number])


@pytest.mark.parametrize("engine", ["megatron", "deepspeed_zero1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plan_counts_with_the_kernels_that_a_gpu_gets(engine: str, precision: str) -> None:
    config = compose(["experiment=demo", "cluster=h200", f"engine={engine}", f"precision={precision}"])
    expected, found = choose(config, torch.device("cuda")), planned(config)
    assert dataclasses.replace(found, attention=expected.attention) == expected


@pytest.mark.slow
@pytest.mark.skipif("FINELINE_GPU_LONG" not in os.environ, reason="takes minutes: set FINELINE_GPU_LONG=1")
def test_200_steps_of_fast_and_plain_differ_as_two_plain_runs_do() -> None:
    """Two plain runs differ by their attention kernels alone; the fast run must be no further from either."""
    plain = {"layers": "plain", "loss": "whole", "weight_gradients": "plain", "optimizer": "plain", "compile": False}
    layouts = [
        Layout("flash", compute="bf16", kernels=plain | {"attention": "flash"}),
        Layout("efficient", compute="bf16", kernels=plain | {"attention": "efficient"}),
        Layout("fast", compute="bf16", kernels=FAST),
    ]
    flash, efficient, fast = (np.array(one) for one in run_ranks("tests.parity.kernel_workers:losses", 1, layouts)[0])
    noise = np.abs(flash - efficient).max()
    assert min(np.abs(fast - flash).max(), np.abs(fast - efficient).max()) <= 2 * noise
