"""Fused functions against plain torch and its autograd: values, gradients, and what they keep for backward."""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pretrain.model.layers.elementwise import release, rms_norm, rotated_heads, swiglu, swiglu_forward

EPSILON = 1e-5
ROUNDING = 2e-6  # of fp32 in sums of up to 96 terms of size one


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def gradients(outputs: torch.Tensor | tuple[torch.Tensor, ...], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = tuple(drawn(*o.shape, seed=7 + i, dtype=o.dtype).detach() for i, o in enumerate(outputs))
    return list(torch.autograd.grad(outputs, inputs, wanted))


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        scale = float(other.detach().float().abs().max()) or 1.0
        assert float((one - other).detach().float().abs().max()) <= tolerance * scale


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 9), batch=st.integers(1, 3), width=st.integers(1, 96), with_residual=st.booleans())
def test_a_norm_and_its_residual_are_torchs(length: int, batch: int, width: int, with_residual: bool) -> None:
    x, weight = drawn(length, batch, width), drawn(width, seed=1)
    residual = drawn(length, batch, width, seed=2) if with_residual else None
    inputs = [x, weight, *([residual] if residual is not None else [])]
    found = rms_norm(x, weight, residual, epsilon=EPSILON, compiled=False)
    total = x if residual is None else x + residual
    expected = (total * 1, F.rms_norm(total, (width,), weight, EPSILON))
    assert_near([*found, *gradients(found, inputs)], [*expected, *gradients(expected, inputs)], 10 * ROUNDING)


def test_a_norm_behind_the_last_layer_has_one_gradient_to_go_on_with() -> None:
    x, weight = drawn(5, 2, 32), drawn(32, seed=1)
    found = gradients(rms_norm(x, weight, None, epsilon=EPSILON, compiled=False)[1], [x, weight])
    assert_near(found, gradients(F.rms_norm(x, (32,), weight, EPSILON), [x, weight]), ROUNDING)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 9), batch=st.integers(1, 3), width=st.integers(1, 48))
def test_swiglu_is_silu_of_the_first_half_times_the_second(length: int, batch: int, width: int) -> None:
    gate_up = drawn(length, batch, 2 * width)
    gate, up = gate_up.chunk(2, -1)
    found, expected = swiglu(gate_up, compiled=False), F.silu(gate) * up
    both = [found, *gradients(found, [gate_up])], [expected, *gradients(expected, [gate_up])]
    assert_near(*both, ROUNDING)


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 9),
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 4),
    half=st.integers(1, 8),
)
def test_heads_are_split_and_rotated_as_hugging_face_does(
    length: int, batch: int, groups: int, per_group: int, half: int
) -> None:
    mixed = drawn(length, batch, groups * (per_group + 2) * 2 * half)
    angles = torch.arange(length)[:, None] / 10.0 ** torch.linspace(0, 1, half)
    table = torch.cat([angles.cos(), angles.sin()], -1)[:, None, None]
    found = rotated_heads(mixed, table, head_dim=2 * half, heads_per_group=per_group, compiled=False)
    parts = mixed.unflatten(-1, (groups, per_group + 2, 2 * half))
    query, key, value = parts[..., :-2, :].flatten(2, 3), parts[..., -2, :], parts[..., -1, :]
    twice = (torch.cat([table_half, table_half], -1)[None] for table_half in (angles.cos(), angles.sin()))
    rotated = apply_rotary_pos_emb(query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), *twice)
    expected = (*(t.permute(2, 0, 1, 3) for t in rotated), value)
    both = [*found, *gradients(found, [mixed])], [*expected, *gradients(expected, [mixed])]
    assert_near(*both, ROUNDING)


def test_bf16_rounds_once() -> None:
    """Half a unit in the last of bf16's 8 bits, of the fp32 result of the same rounded inputs."""
    half_unit = 2.0**-8
    x, residual = drawn(6, 2, 64, dtype=torch.bfloat16), drawn(6, 2, 64, seed=2, dtype=torch.bfloat16)
    weight = drawn(64, seed=1, dtype=torch.bfloat16)
    total, normed = rms_norm(x, weight, residual, epsilon=EPSILON, compiled=False)
    assert torch.equal(total, x + residual)
    exact = F.rms_norm(total.float(), (64,), weight.float(), EPSILON)
    assert ((normed.float() - exact).abs() <= 1.001 * half_unit * exact.abs()).all()
    gate, up = x.float().chunk(2, -1)
    exact = F.silu(gate) * up
    assert ((swiglu(x, compiled=False).float() - exact).abs() <= 1.001 * half_unit * exact.abs()).all()


def test_released_elements_are_made_again_before_backward_and_not_kept_after() -> None:
    gate_up, weight = drawn(8, 2, 64), torch.nn.Parameter(drawn(16, 32, seed=3).detach())
    active, made = swiglu(gate_up, compiled=False), []

    def again() -> torch.Tensor:
        made.append(swiglu_forward(gate_up.detach()))
        return made[-1]

    out, storage = F.linear(active, weight), active.untyped_storage()
    release(active, used_for=out, again=again)
    held = weakref.ref(active)
    del active
    assert storage.nbytes() == 0 and not made
    found = gradients(out, [gate_up, weight])
    assert len(made) == 1 and held() is None
    kept = F.linear(swiglu(gate_up, compiled=False), weight)
    assert all(map(torch.equal, found, gradients(kept, [gate_up, weight])))
