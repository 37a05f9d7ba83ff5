"""Figures per layer are those of the whole model in every layout, and measuring them changes nothing.

The oracle is Hugging Face's LlamaForCausalLM with hooks and torch's AdamW on one process: it knows no shard, no
microbatch and no padding row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.model.spec import ModelSpec
from tests.parity.dynamics_workers import STEPS
from tests.parity.test_layouts import huggingface_model
from tests.parity.workers import (
    BATCH,
    CLIP,
    EPSILON,
    FUSED,
    FUSED_BY_DEEPSPEED,
    RATE,
    VOCAB,
    Layout,
    configuration,
    sample,
)
from tests.support.ranks import run_ranks

ONE = [
    Layout("one process"),
    Layout("tied", tie_embeddings=True),
    Layout("full recomputation", recompute="full"),
    Layout("selective recomputation", recompute="selective"),
    Layout("fused, selective recomputation", kernels=FUSED, recompute="selective"),
]
TWO = [
    Layout("DP2, distributed optimizer"),
    Layout("DP2, plain", distributed_optimizer=False, overlap=False),
    Layout("TP2", tensor=2),
    Layout("TP2, sequence parallel", tensor=2, sequence=True),
    Layout("TP2, plain, tied", tensor=2, distributed_optimizer=False, tie_embeddings=True),
    Layout("PP2", extra={"pipeline": 2}),
    Layout("PP2, tied", extra={"pipeline": 2}, tie_embeddings=True),
    Layout("PP2 x VPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
    Layout("CP2", extra={"context": 2}),
    Layout("ZeRO-0", zero=0),
    Layout("ZeRO-1", zero=1),
    Layout("ZeRO-2, offloaded", zero=2, offload="optimizer"),
    Layout("ZeRO-3", zero=3),
    Layout("ZeRO-3, offloaded, tied", zero=3, offload="optimizer", tie_embeddings=True),
    Layout("TP2 x ZeRO-1", zero=1, tensor=2),
    Layout("TP2, sequence parallel, fused", kernels=FUSED, tensor=2, sequence=True),
    Layout("ZeRO-3, fused", kernels=FUSED_BY_DEEPSPEED, zero=3),
]
FOUR = [
    Layout("DP2 x TP2, plain", tensor=2, distributed_optimizer=False),
    Layout("TP2 x PP2, sequence parallel", tensor=2, sequence=True, extra={"pipeline": 2}),
    Layout("TP2 x CP2, sequence parallel", tensor=2, sequence=True, extra={"context": 2}),
    Layout("PP2 x CP2, tied", extra={"pipeline": 2, "context": 2}, tie_embeddings=True),
]
OBSERVED = (0, 1, STEPS - 1)

GROUPS = {
    "attention_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.o_proj",),
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_out": ("mlp.down_proj",),
    "norms": ("input_layernorm", "post_attention_layernorm"),
}


def groups_of(model: Any) -> dict[str, list[torch.nn.Parameter]]:
    found = {"embedding": [model.model.embed_tokens.weight], "final_norm": [model.model.norm.weight]}
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        found["output_layer"] = [model.lm_head.weight]
    for index, layer in enumerate(model.model.layers):
        for group, modules in GROUPS.items():
            found[f"layer_{index:03d}/{group}"] = [layer.get_submodule(name).weight for name in modules]
    return found


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


class Watch:
    """Residual stream and attention logits of one Hugging Face forward, from hooks."""

    def __init__(self, model: Any) -> None:
        self.figures: dict[str, float] = {}
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_hook(self._residual(f"dynamics/layer_{index:03d}/activation_rms"))
            name = f"dynamics/layer_{index:03d}/largest_attention_logit"
            layer.self_attn.register_forward_pre_hook(self._logits(name), with_kwargs=True)

    def _residual(self, name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self.figures[name] = float(hidden.detach().double().square().mean().sqrt())

        return hook

    def _logits(self, name: str) -> Any:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

        @torch.no_grad()
        def hook(attention: Any, args: Any, kwargs: Any) -> None:
            hidden = kwargs["hidden_states"]
            shape = (*hidden.shape[:-1], -1, attention.head_dim)
            q = attention.q_proj(hidden).view(shape).transpose(1, 2)
            k = attention.k_proj(hidden).view(shape).transpose(1, 2)
            q, k = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
            logits = q @ repeat_kv(k, q.shape[1] // k.shape[1]).transpose(2, 3) * attention.scaling
            self.figures[name] = float(logits.tril().abs().max())

        return hook


def reference(layout: Layout, start: list[Any]) -> list[dict[str, float]]:
    """The figures of each step, from whole tensors."""
    spec = ModelSpec.from_config(configuration(layout).model, VOCAB)
    model = huggingface_model(spec, start)
    watch, groups = Watch(model), groups_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=EPSILON, weight_decay=0.1)
    steps = []
    for step in range(STEPS):
        tokens = torch.from_numpy(np.stack([sample(step * BATCH + i) for i in range(BATCH)])).long()
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        figures = dict(watch.figures)
        entropy = torch.distributions.Categorical(logits=logits.detach().double()).entropy().mean()
        figures["dynamics/output_entropy"] = float(entropy)
        before = {group: [p.detach().clone() for p in parameters] for group, parameters in groups.items()}
        for group, parameters in groups.items():
            figures[f"dynamics/{group}/grad_norm"] = norm([p.grad for p in parameters if p.grad is not None])
            figures[f"dynamics/{group}/weight_norm"] = norm(before[group])
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.param_groups[0]["lr"] = RATE * (step + 1)
        optimizer.step()
        for group, parameters in groups.items():
            change = norm([p.detach() - old for p, old in zip(parameters, before[group], strict=True)])
            figures[f"dynamics/{group}/update_ratio"] = change / norm(before[group])
            moments = [optimizer.state[p]["exp_avg_sq"] for p in parameters]
            figures[f"dynamics/{group}/second_moment_norm"] = norm(moments)
        steps.append(figures)
    return steps


@pytest.fixture(scope="module")
def single() -> dict[str, dict[str, Any]]:
    results = run_ranks("tests.parity.dynamics_workers:observe", 1, (ONE, OBSERVED))[0]
    return {result["name"]: result for result in results}


@pytest.fixture(scope="module")
def oracle(single: dict[str, dict[str, Any]]) -> dict[bool, list[dict[str, float]]]:
    return {layout.tie_embeddings: reference(layout, single[layout.name]["start"]) for layout in ONE[:2]}


def _observe(layouts: list[Layout], world_size: int, observed: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    ranks = run_ranks("tests.parity.dynamics_workers:observe", world_size, (layouts, observed))
    return {per_rank[0]["name"]: list(per_rank) for per_rank in zip(*ranks, strict=True)}


@pytest.fixture(scope="module")
def double() -> dict[str, list[dict[str, Any]]]:
    return _observe(TWO, 2, OBSERVED)


@pytest.fixture(scope="module")
def quadruple() -> dict[str, list[dict[str, Any]]]:
    return _observe(FOUR, 4, OBSERVED)


def _agree(ranks: list[dict[str, Any]], expected: list[dict[str, float]]) -> None:
    for rank in ranks:
        for step, figures in enumerate(rank["dynamics"]):
            if step not in OBSERVED:
                assert figures is None
                continue
            assert figures == ranks[0]["dynamics"][step], "every rank has the figures of the whole model"
            assert figures.keys() == expected[step].keys()
            for name, value in figures.items():
                assert value == pytest.approx(expected[step][name], rel=1e-5), f"{name} of step {step}"


@pytest.mark.parametrize("layout", ONE, ids=lambda layout: layout.name)
def test_figures_of_one_process_are_those_of_hugging_face(layout: Layout, single: Any, oracle: Any) -> None:
    _agree([single[layout.name]], oracle[layout.tie_embeddings])


@pytest.mark.parametrize("layout", TWO, ids=lambda layout: layout.name)
def test_figures_of_two_processes_are_those_of_the_whole_model(layout: Layout, double: Any, oracle: Any) -> None:
    _agree(double[layout.name], oracle[layout.tie_embeddings])


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR, ids=lambda layout: layout.name)
def test_figures_of_four_processes_are_those_of_the_whole_model(layout: Layout, quadruple: Any, oracle: Any) -> None:
    _agree(quadruple[layout.name], oracle[layout.tie_embeddings])


BITWISE = (
    "DP2, distributed optimizer",
    "TP2, sequence parallel",
    "PP2 x VPP2",
    "ZeRO-3",
    "TP2, sequence parallel, fused",
)


@pytest.mark.parametrize("names", [BITWISE, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_observing_leaves_losses_and_weights_bitwise_the_same(
    names: tuple[str, ...] | None, single: Any, double: Any
) -> None:
    two = [layout for layout in TWO if names is None or layout.name in names]
    quiet = _observe(ONE[:1] if names else ONE, 1, ()) | _observe(two, 2, ())
    observed = {name: [result] for name, result in single.items()} | double
    assert quiet.keys() <= observed.keys() and len(quiet) >= 5
    for name, ranks in quiet.items():
        for one, other in zip(ranks, observed[name], strict=True):
            assert one["dynamics"] == [None] * STEPS
            assert one["losses"] == other["losses"], name
            for (*_, expected), (*_, got) in zip(one["weights"], other["weights"], strict=True):
                assert np.array_equal(expected, got), name
