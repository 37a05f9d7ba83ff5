"""Compiled functions: one graph each, the same results, and no end of a run where forms of them are too many."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from pretrain.model.layers.compiled import fast
from pretrain.model.layers.elementwise import rms_norm, rotated_heads, swiglu
from pretrain.model.layers.fp8 import linear
from pretrain.model.layers.tree import TreeMask, tree_attention
from tests.unit.model.test_elementwise import EPSILON, ROUNDING, assert_near, drawn, gradients
from tests.unit.model.test_fp8 import drawn as drawn_bf16
from tests.unit.model.test_loss import FP32, case, chunked
from tests.unit.model.test_tree import SCALE, row_of, states

pytestmark = pytest.mark.slow  # compiling takes seconds a form


@pytest.fixture(autouse=True)
def _one_graph_each() -> Iterator[None]:
    torch._dynamo.reset()  # what other tests compiled
    counters.clear()
    yield
    assert counters["frames"]["ok"] > 0
    assert not counters["graph_break"]


def squared(x: torch.Tensor) -> torch.Tensor:
    return x * x


def test_a_form_too_many_runs_uncompiled() -> None:
    compiled = fast(squared, True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for dimensions in range(1, 6):  # each is a form of its own
            x = torch.full((3,) * dimensions, 1.5)
            assert torch.equal(compiled(x), torch.full((3,) * dimensions, 2.25))
    assert counters["frames"]["ok"] == 2


@pytest.mark.parametrize("accumulate", [False, True])
def test_fp8_products_are_the_same(accumulate: bool) -> None:
    def run(compiled: bool) -> list[torch.Tensor]:
        inputs, weight = drawn_bf16(16, 32).requires_grad_(), torch.nn.Parameter(drawn_bf16(48, 32, seed=1))
        weight.main_grad = torch.ones(48, 32)
        out = linear(inputs, weight, compiled=compiled, accumulate=accumulate)
        out.backward(drawn_bf16(*out.shape, seed=3))
        return [out, inputs.grad, weight.main_grad if accumulate else weight.grad]

    assert all(map(torch.equal, run(True), run(False)))  # scales are powers or quotients of the same numbers


def test_attention_within_rows_is_the_same() -> None:
    row = row_of(np.random.default_rng(0), prefix=40, blocks=3, length=9, tail=4, single=False)
    inputs, ends_S = states(row, heads=4, groups=2), torch.from_numpy(row.ends_S)
    trees = (TreeMask(row, ends_S, apart=True, compiled=compiled) for compiled in (True, False))
    compiled, plain = (tree_attention(*inputs, tree, SCALE) for tree in trees)
    assert (compiled - plain).abs().max() <= 1e-6 * plain.abs().max()  # exponentials of another library


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_of_a_layer_are_the_same(dtype: torch.dtype) -> None:
    tolerance = 10 * ROUNDING if dtype is torch.float32 else 2.0**-7  # rounded once more or less
    for length in (8, 5, 11):  # the second length makes it dynamic
        x, residual = drawn(length, 2, 64, dtype=dtype), drawn(length, 2, 64, seed=2, dtype=dtype)
        weight, table = drawn(64, seed=1, dtype=dtype), torch.rand(length, 1, 1, 8)
        for run, inputs in (
            (partial(rms_norm, x, weight, residual, epsilon=EPSILON), [x, weight, residual]),
            (partial(rms_norm, x, weight, None, epsilon=EPSILON), [x, weight]),
            (partial(swiglu, x), [x]),
            (partial(rotated_heads, x, table, head_dim=8, heads_per_group=2), [x]),
        ):
            plain, compiled = run(compiled=False), run(compiled=True)
            both = [list(t) if isinstance(t, tuple) else [t] for t in (compiled, plain)]
            assert_near(both[0] + gradients(compiled, inputs), both[1] + gradients(plain, inputs), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradients_are_the_same(dtype: torch.dtype) -> None:
    # Sums and exponentials of another order and library: fp32 noise, which bf16 may round to the next number.
    assert_near(
        chunked(case(), dtype, compiled=True), chunked(case(), dtype), FP32 if dtype == torch.float32 else 2**-8
    )
