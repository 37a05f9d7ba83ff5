"""The one-pass AdamW against torch's: the same bits in eager fp32, the same to a few roundings when compiled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pretrain.engine.megatron.adamw import FusedAdamW

SHAPES = ((64, 48), (7,), (129, 33), (1,), (300,))
BETAS, EPS = (0.9, 0.95), 1e-8


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(params: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    decayed, plain = list(params[:3]), list(params[3:])
    return [
        {"params": decayed, "lr": 1e-3, "weight_decay": 0.1, "wd_mult": 1.0},
        {"params": plain, "lr": 1e-3, "weight_decay": 0.0, "wd_mult": 0.0},
    ]


def fused(params: Sequence[torch.nn.Parameter], *, compiled: bool = False, copies: bool = True) -> FusedAdamW:
    rounded = {p: p.detach().bfloat16().view(-1) for p in params} if copies else {}
    return FusedAdamW(groups(params), betas=BETAS, eps=EPS, copies=rounded, compiled=compiled)


def oracle(params: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
    plain = [{key: value for key, value in group.items() if key != "wd_mult"} for group in groups(params)]
    return torch.optim.AdamW(plain, betas=BETAS, eps=EPS, foreach=False)


def set_gradients(params: Sequence[torch.nn.Parameter], step: int, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * factor


def step(optimizer: FusedAdamW, *, scale: float = 1.0, apply: bool = True) -> None:
    optimizer.step(scale=torch.tensor(scale), apply=torch.tensor(apply))


def everything(optimizer: FusedAdamW) -> list[torch.Tensor]:
    """Clones of parameters, moments, copies and steps."""
    held = [group["step"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        for p in group["params"]:
            held += [p.detach(), *optimizer.state[p].values(), *([optimizer._copies[p]] if optimizer._copies else [])]
    return [tensor.clone() for tensor in held]


def assert_same_bits(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype and torch.equal(
            a.contiguous().view(-1, 1).view(torch.uint8), b.view(-1, 1).view(torch.uint8)
        )


def test_twenty_steps_equal_torch_adamw_bitwise_with_scale_and_decay_groups() -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = fused(ours), oracle(theirs)
    scale = torch.tensor(0.37)
    for number in range(20):
        set_gradients(ours, number)
        set_gradients(theirs, number)
        for p in theirs:
            assert p.grad is not None
            p.grad.mul_(scale)
        for group in [*optimizer.param_groups, *reference.param_groups]:
            group["lr"] = 1e-3 * (number + 1) / 7
            group["weight_decay"] = group["weight_decay"] * 0.9  # written at every step, as the engine does
        optimizer.step(scale=scale, apply=torch.tensor(True))
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits([p.detach()], [q.detach()])
        assert_same_bits(list(optimizer.state[p].values()), [reference.state[q][k] for k in ("exp_avg", "exp_avg_sq")])
    assert [group["step"].item() for group in optimizer.param_groups] == [20.0, 20.0]


@pytest.mark.parametrize("gradient", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("scale", [1.0, 0.0, float("nan")])
def test_a_step_that_is_not_applied_leaves_every_bit(gradient: float, scale: float) -> None:
    params = parameters()
    optimizer = fused(params)
    for number in range(2):  # moments at zero, then not
        before = everything(optimizer)
        for p in params:
            p.grad = torch.full_like(p, gradient)
        step(optimizer, scale=scale, apply=False)
        assert_same_bits(everything(optimizer), before)
        set_gradients(params, number)
        step(optimizer)


def test_a_skipped_step_is_as_if_it_had_not_been() -> None:
    skipping, straight = fused(parameters()), fused(parameters())
    for number in range(4):
        for optimizer in (skipping, straight):
            set_gradients([p for group in optimizer.param_groups for p in group["params"]], number)
            if number != 1:
                step(optimizer)
            elif optimizer is skipping:
                step(optimizer, apply=False)
    assert_same_bits(everything(skipping), everything(straight))


def test_copies_are_the_rounded_weights_and_gradients_are_left_alone() -> None:
    params = parameters()
    optimizer = fused(params)
    for number in range(3):
        set_gradients(params, number)
        gradients = [p.grad.clone() for p in params if p.grad is not None]
        step(optimizer, scale=0.5)
        assert_same_bits([p.grad for p in params if p.grad is not None], gradients)
        for p in params:
            assert_same_bits([optimizer._copies[p]], [p.detach().bfloat16().view(-1)])


def test_parameters_without_gradient_or_copy_are_no_special_case() -> None:
    params = parameters()
    optimizer = fused(params, copies=False)
    set_gradients(params, 0)
    params[1].grad = None
    before = params[1].detach().clone()
    step(optimizer)
    assert torch.equal(params[1], before) and not optimizer.state[params[1]]["exp_avg"].any()
    assert all(optimizer.state[p]["exp_avg"].any() for i, p in enumerate(params) if i != 1)


def test_groups_stay_the_same_objects_and_state_survives_a_round_trip() -> None:
    params, again = parameters(), parameters()
    own = groups(again)
    optimizer = fused(params)
    restored = FusedAdamW(own, betas=BETAS, eps=EPS, copies={p: p.detach().bfloat16() for p in again}, compiled=False)
    for number in range(3):
        set_gradients(params, number)
        step(optimizer)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(again, params, strict=True):
            p.copy_(q)
    for one, each in ((optimizer, params), (restored, again)):
        set_gradients(each, 3)
        step(one)
    assert all(a is b for a, b in zip(restored.param_groups, own, strict=True))
    left, right = everything(optimizer), everything(restored)
    assert_same_bits([t for t in left if t.dtype == torch.float32], [t for t in right if t.dtype == torch.float32])


@pytest.mark.slow
def test_compiled_is_one_kernel_without_buffers_and_agrees_with_eager() -> None:
    from torch._inductor.utils import run_and_get_code

    eager, compiled = fused(parameters()), fused(parameters(), compiled=True)
    for number in range(20):
        for optimizer in (eager, compiled):
            set_gradients([p for group in optimizer.param_groups for p in group["params"]], number)
        step(eager, scale=0.37)
        if number == 0:
            _, sources = run_and_get_code(step, compiled, scale=0.37)
        else:
            step(compiled, scale=0.37)
    assert len(sources) == 2, "one program for every length, and one for single elements"
    for source in sources:
        body = source[source.index("def call(") :]
        assert source.count("async_compile.cpp_pybinding(") == 1 and "empty_strided" not in body
    for a, b in zip(everything(eager), everything(compiled), strict=True):
        if a.dtype == torch.float32:
            # lerp's multiply and add are contracted in one of the two: half a unit in the last place each step, of
            # weights up to 4; moments likewise.
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for group in compiled.param_groups:
        for p in group["params"]:
            assert_same_bits([compiled._copies[p]], [p.detach().bfloat16().view(-1)])
    before = everything(compiled)
    for group in compiled.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, float("nan"))
    step(compiled, scale=float("nan"), apply=False)
    assert_same_bits(everything(compiled), before)
