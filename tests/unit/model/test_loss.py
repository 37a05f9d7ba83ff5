"""Cross entropy and log Z from hidden states, against F.cross_entropy and logsumexp in float64 and the whole logits."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model.layers import loss
from pretrain.model.layers.loss import cross_entropy_and_log_z, linear_cross_entropy

ALONE: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
PART, REAL, HIDDEN = 160, 61, 24
"""Rows, of which 61 are real: 64 are computed, 3 of them padding."""
LENGTH, BATCH = 151, 4
"""604 tokens: chunks of 256, 256 and 92."""
Z_LOSS = 1e-2


@pytest.fixture(autouse=True)
def _smallest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CPU_CHUNK_BYTES", 1)


def case(
    seed: int = 0, length: int = LENGTH, batch: int = BATCH, part: int = PART, real: int = REAL
) -> tuple[torch.Tensor, ...]:
    """Hidden states, weights, labels with those at the borders among them, and a factor of each token's loss."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator)
    hidden_SBH, weight_VH = draw(length, batch, HIDDEN), draw(part, HIDDEN)
    weight_VH[real:] = 50.0  # the winner of most tokens, if padding were looked at
    labels_SB = torch.randint(0, real, (length, batch), generator=generator)
    labels_SB[0, 0], labels_SB[-1, -1] = 0, real - 1
    return hidden_SBH, weight_VH, labels_SB, torch.rand(length, batch, generator=generator)


def leaf(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype, copy=True).requires_grad_()


def objective(loss_SB: torch.Tensor, log_z_SB: torch.Tensor, factor_SB: torch.Tensor) -> torch.Tensor:
    return ((loss_SB + Z_LOSS * log_z_SB.square()) * factor_SB).sum()


def chunked(
    inputs: tuple[torch.Tensor, ...],
    dtype: torch.dtype = torch.float32,
    real: int = REAL,
    weight: torch.Tensor | None = None,
    accumulate: bool = False,
    compiled: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Loss, log Z and the gradients of hidden states and weight."""
    hidden = leaf(inputs[0], dtype)
    weight = leaf(inputs[1], dtype) if weight is None else weight
    found = linear_cross_entropy(
        hidden,
        weight,
        inputs[2],
        vocab_size_here=real,
        group=ALONE,
        compiled=compiled,
        accumulate_into_main_grad=accumulate,
    )
    objective(*found, inputs[3]).backward()
    return found[0].detach(), found[1].detach(), hidden.grad, weight.grad


def whole(
    inputs: tuple[torch.Tensor, ...], dtype: torch.dtype = torch.float32, real: int = REAL
) -> tuple[torch.Tensor, ...]:
    """The same from the logits of all tokens, this project's other path."""
    hidden, weight = leaf(inputs[0], dtype), leaf(inputs[1], dtype)
    padding = torch.arange(len(weight)) >= real
    logits_SBV = F.linear(hidden, weight).masked_fill(padding, -torch.inf)
    found = cross_entropy_and_log_z(logits_SBV, inputs[2], group=ALONE)
    objective(*found, inputs[3]).backward()
    return found[0].detach(), found[1].detach(), hidden.grad, weight.grad


def oracle(inputs: tuple[torch.Tensor, ...], dtype: torch.dtype = torch.float32, real: int = REAL) -> tuple[Any, ...]:
    """torch's own functions in float64 on what `dtype` holds of the inputs."""
    hidden, weight = (leaf(one.to(dtype), torch.float64) for one in inputs[:2])
    logits_SBV = hidden @ weight[:real].T
    loss_SB = F.cross_entropy(logits_SBV.flatten(0, 1), inputs[2].flatten(), reduction="none").view(inputs[2].shape)
    log_z_SB = logits_SBV.logsumexp(-1)
    objective(loss_SB, log_z_SB, inputs[3].double()).backward()
    return loss_SB.detach(), log_z_SB.detach(), hidden.grad, weight.grad


def assert_near(found: tuple[Any, ...], expected: tuple[Any, ...], relative: float) -> None:
    """Errors measured by the largest number of each tensor."""
    for name, one, other in zip(("loss", "log z", "hidden", "weight"), found, expected, strict=True):
        error = float((one.double() - other.double()).abs().max() / other.abs().max())
        assert error <= relative, f"{name}: {error:.2e}"


FP32 = 2e-6  # sums of at most 604 terms in fp32, unit roundoff 6e-8, errors of which mostly cancel


def test_chunks_in_fp32_give_what_float64_gives_on_whole_logits() -> None:
    found = chunked(case())
    assert found[0].dtype == found[1].dtype == torch.float32
    assert_near(found, oracle(case()), FP32)


@given(
    seed=st.integers(0, 1000),
    length=st.integers(1, 130),
    batch=st.integers(1, 5),
    real=st.sampled_from([1, 2, 61, 63, 64, 65, 128, 159, 160]),
)
@settings(max_examples=15, deadline=None)
def test_any_number_of_tokens_and_of_padding_rows(seed: int, length: int, batch: int, real: int) -> None:
    inputs = case(seed, length, batch, real=real)
    found, expected = chunked(inputs, real=real), oracle(inputs, real=real)
    # One row alone: loss and its gradient are exactly 0, and log Z's is all there is.
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)  # logits up to 25, gradients up to 100
    assert not found[3][real:].any(), "padding rows have no gradient"


def test_bf16_rounds_what_whole_logits_in_bf16_round() -> None:
    inputs = case()
    found, expected = chunked(inputs, torch.bfloat16), whole(inputs, torch.bfloat16)
    # The same bf16 logits, the same fp32 arithmetic on them.
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)  # fp32 sums of 64 against 160 exponentials
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
    # Gradients of logits are equal but where those sums move one over a rounding border of bf16 (2^-8 of one term);
    # a gradient is itself rounded to 2^-9. The whole path sums the weight's in bf16's product, also rounded once.
    assert found[2].dtype == found[3].dtype == torch.bfloat16
    assert_near(found, expected, 2**-8)


def test_bf16_is_as_near_to_float64_as_whole_logits_in_bf16_are() -> None:
    inputs = case()
    exact = oracle(inputs, torch.bfloat16)
    # Logits of up to 25 rounded to bf16 err by up to 2^-9 · 32 = 0.06; losses reach 30.
    assert_near(chunked(inputs, torch.bfloat16), exact, 0.01)
    for found, plain, true in zip(chunked(inputs, torch.bfloat16), whole(inputs, torch.bfloat16), exact, strict=True):
        ours, theirs = ((one.double() - true).square().mean().sqrt() for one in (found, plain))
        assert ours <= 1.01 * theirs


def test_a_rank_that_holds_padding_rows_only_contributes_nothing() -> None:
    hidden_SBH, weight_VH, labels_SB, _ = case()
    hidden_SBH, weight_VH = hidden_SBH.requires_grad_(), weight_VH.requires_grad_()
    # Alone it has no answer either (log 0); its gradients are what the rank hands into the group's sums.
    found = linear_cross_entropy(
        hidden_SBH,
        weight_VH,
        labels_SB,
        vocab_size_here=0,
        group=ALONE,
        compiled=False,
        accumulate_into_main_grad=False,
    )
    found[0].sum().backward()
    assert not hidden_SBH.grad.any() and not weight_VH.grad.any()


def test_without_gradients_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case()
    with torch.no_grad(), Largest(torch.bfloat16) as largest:
        found = linear_cross_entropy(
            inputs[0].bfloat16(),
            inputs[1].bfloat16(),
            inputs[2],
            vocab_size_here=REAL,
            group=ALONE,
            compiled=False,
            accumulate_into_main_grad=False,
        )
    assert found[0].grad_fn is None
    assert largest.elements == 256 * 64


def test_a_frozen_weight_gets_no_gradient_and_hidden_states_theirs() -> None:
    inputs = case()
    weight = inputs[1].clone()
    found = chunked(inputs, weight=weight)
    assert found[3] is None
    assert torch.equal(found[2], chunked(inputs)[2])


class Largest(TorchDispatchMode):
    """The most elements of any tensor of a dtype that an operation gives, in forward and backward."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.elements = dtype, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == self.dtype:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp32_logits_of_all_tokens_never_exist(dtype: torch.dtype) -> None:
    length, real = 1024, 256
    inputs = case(length=length, batch=1, part=real, real=real)
    with Largest(torch.float32) as largest:
        chunked(inputs, dtype, real=real)
    assert largest.elements == 256 * real, "a chunk of 256 tokens"
    with Largest(torch.float32) as largest:
        whole(inputs, dtype, real=real)
    assert largest.elements == length * real, "the measure sees them where they are"


def handing_over(weight_VH: torch.Tensor, main_grad_VH: torch.Tensor, tied: bool) -> torch.nn.Parameter:
    """A weight as Megatron's DDP prepares it, with its hook that adds and drops `grad`."""
    weight = torch.nn.Parameter(weight_VH)
    weight.main_grad, weight.grad_added_to_main_grad = main_grad_VH, False
    if tied:
        weight.zero_out_wgrad = True

    def hook(parameter: Any) -> None:  # distributed_data_parallel.py: _make_backward_post_hook
        if not parameter.grad_added_to_main_grad or getattr(parameter, "zero_out_wgrad", False):
            parameter.main_grad.add_(parameter.grad)
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(hook)
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_two_microbatches_add_up_in_main_grad(dtype: torch.dtype) -> None:
    first, second = case(1), case(2)
    second = (second[0], first[1], *second[2:])
    main_grad = torch.full((PART, HIDDEN), 7.0)
    weight = handing_over(first[1].to(dtype), main_grad, tied=False)
    for inputs in (first, second):
        chunked(inputs, dtype, weight=weight, accumulate=True)
        assert weight.grad_added_to_main_grad and weight.grad is None
    main_grad -= 7.0
    # In fp32 no rounding to bf16 happens between microbatches: as near as the logits' rounding lets both be.
    expected = sum(oracle(inputs, dtype)[3] for inputs in (first, second))
    plain = sum(chunked(inputs, dtype)[3].double() for inputs in (first, second))
    rounding = 2e-6 if dtype == torch.float32 else 2**-8
    assert (main_grad - plain).abs().max() <= rounding * plain.abs().max()
    assert (main_grad - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.01) * expected.abs().max()
    assert not main_grad[REAL:].any()


def test_a_tied_weight_has_the_gradients_of_embedding_and_output_layer() -> None:
    inputs = case()
    main_grad = torch.zeros(PART, HIDDEN)
    weight = handing_over(inputs[1].clone(), main_grad, tied=True)
    found = linear_cross_entropy(
        inputs[0] + F.embedding(inputs[2], weight),
        weight,
        inputs[2],
        vocab_size_here=REAL,
        group=ALONE,
        compiled=False,
        accumulate_into_main_grad=True,
    )
    objective(*found, inputs[3]).backward()
    exact = inputs[1].double().requires_grad_()
    logits_SBV = (inputs[0].double() + F.embedding(inputs[2], exact)) @ exact[:REAL].T
    loss_SB = F.cross_entropy(logits_SBV.flatten(0, 1), inputs[2].flatten(), reduction="none").view(inputs[2].shape)
    objective(loss_SB, logits_SBV.logsumexp(-1), inputs[3].double()).backward()
    assert (main_grad - exact.grad).abs().max() <= FP32 * exact.grad.abs().max()
