"""The compiled one-pass AdamW on CUDA: against torch's fused Adam, and without waiting for the device."""

from __future__ import annotations

import pytest
import torch

from pretrain.engine.megatron.adamw import FusedAdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.1
SHAPES = ((1024, 768), (7,), (1, 1), (513, 31))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator(device="cuda").manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, device="cuda")) for shape in SHAPES]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator(device="cuda").manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, device="cuda")


def copies_of(params: list[torch.nn.Parameter], *, shift: int) -> dict[torch.Tensor, torch.Tensor]:
    """bf16 copies that begin `shift` elements into their storage: at 1 none is aligned for wide loads."""
    found: dict[torch.Tensor, torch.Tensor] = {}
    for p in params:
        found[p] = torch.empty(p.numel() + shift, dtype=torch.bfloat16, device="cuda")[shift:]
        found[p].copy_(p.detach().view(-1))
    return found


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_twenty_steps_agree_with_torch_fused_adamw(compiled: bool, shift: int) -> None:
    ours, theirs = parameters(), parameters()
    copies = copies_of(ours, shift=shift)
    groups = [{"params": ours, "lr": 1e-3, "weight_decay": DECAY}]
    optimizer = FusedAdamW(groups, betas=BETAS, eps=EPS, copies=copies, compiled=compiled)
    reference = torch.optim.AdamW(theirs, lr=1e-3, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)
    scale, apply = torch.tensor(0.5, device="cuda"), torch.tensor(True, device="cuda")
    for number in range(20):
        set_gradients(ours, number)
        set_gradients(theirs, number)
        for p in theirs:
            assert p.grad is not None
            p.grad.mul_(0.5)  # a power of two: the same bits as a scale inside
        optimizer.step(scale=scale, apply=apply)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        # A few roundings a step on updates of 1e-3, and half a unit in the last place of weights up to 4.
        torch.testing.assert_close(p, q, rtol=1e-6, atol=2e-6)
        assert torch.equal(copies[p], p.detach().bfloat16().view(-1))


def test_a_step_never_waits_for_the_device_and_can_leave_everything() -> None:
    params = parameters()
    copies = copies_of(params, shift=0)
    groups = [{"params": params, "lr": 1e-3, "weight_decay": DECAY}]
    optimizer = FusedAdamW(groups, betas=BETAS, eps=EPS, copies=copies, compiled=True)
    scale, yes, no = (torch.tensor(value, device="cuda") for value in (1.0, True, False))
    set_gradients(params, 0)
    optimizer.step(scale=scale, apply=yes)  # compiles
    kept = [t.clone() for p in params for t in (p.detach(), *optimizer.state[p].values(), copies[p])]
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.param_groups[0]["lr"] = 2e-3
        optimizer.step(scale=scale, apply=no)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    now = [t for p in params for t in (p.detach(), *optimizer.state[p].values(), copies[p])]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert optimizer.param_groups[0]["step"].item() == 1.0
