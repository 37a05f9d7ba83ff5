"""Products in fp8 against fp64 products of the numbers that fp8 can hold, and against those it cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.model.layers.fp8 import linear, to_fp8

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF_UNIT = {E4M3: 2.0**-4, E5M2: 2.0**-3}  # 3 and 2 bits behind the leading one


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def held(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp64: what is left of a tensor in fp8."""
    rounded, scale = to_fp8(tensor, dtype)
    return rounded.double() * scale.double()


@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-60, 60), dtype=st.sampled_from([E4M3, E5M2]), seed=st.integers(0, 9))
def test_rounding_keeps_a_tensor_of_any_size(exponent: int, dtype: torch.dtype, seed: int) -> None:
    tensor = drawn(16, 32, seed=seed, scale=2.0**exponent)
    found, exact = held(tensor, dtype), tensor.double()
    largest = exact.abs().max()
    normal = exact.abs() > largest * 2.0**-13  # smaller ones are at the ends of e4m3's exponents
    assert ((found - exact).abs() <= 1.001 * HALF_UNIT[dtype] * exact.abs())[normal].all()
    assert abs(found.abs().max() / largest - 1) < 1e-6, "the largest magnitude is held exactly"


def test_a_tensor_of_zeros_stays_zero() -> None:
    assert torch.equal(held(torch.zeros(16, 16).bfloat16(), E4M3), torch.zeros(16, 16).double())


@pytest.mark.parametrize("accumulate", [False, True])
def test_all_three_products_are_those_of_the_rounded_numbers(accumulate: bool) -> None:
    inputs, weight = drawn(6, 8, 32).requires_grad_(), torch.nn.Parameter(drawn(64, 32, seed=1, scale=0.02))
    grad = drawn(6, 8, 64, seed=2, scale=1e-5)
    if accumulate:
        weight.main_grad = torch.ones(64, 32)
    out = linear(inputs, weight, compiled=False, accumulate=accumulate)
    out.backward(grad)
    x, w, g = held(inputs.detach().flatten(0, 1), E4M3), held(weight.detach(), E4M3), held(grad.flatten(0, 1), E5M2)
    bf16 = 2.0**-8  # results are rounded to bf16 once
    for found, expected in ((out.detach(), x @ w.T), (inputs.grad, g @ w)):
        error = (found.double().flatten(0, 1) - expected).abs()
        assert (error <= bf16 * expected.abs() + 1e-6 * expected.abs().max()).all()
    expected = g.T @ x
    found = weight.main_grad.double() - 1 if accumulate else weight.grad.double()
    # Beside the ones of main_grad, fp32 holds the sum to 2^-24; alone the gradient is rounded to bf16.
    tolerance = 2.0**-23 if accumulate else bf16 * expected.abs() + 1e-6 * expected.abs().max()
    assert ((found - expected).abs() <= tolerance).all()
    assert weight.grad is None or not accumulate or weight.grad_added_to_main_grad


def test_what_fp8_loses_is_a_few_hundredths() -> None:
    """Rounding to 3 bits behind the leading one loses .026 of a normal number on average; a product of two, .037."""
    inputs, weight = drawn(128, 256), drawn(64, 256, seed=1)
    exact = inputs.double() @ weight.double().T
    found = linear(inputs, weight, compiled=False, accumulate=False).double()
    assert 0.02 < float((found - exact).norm() / exact.norm()) < 0.05
