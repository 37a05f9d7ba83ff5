"""The optimiser steps of Amber and OpenLLaMA are those of their own training code, written out in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.config.load import compose
from pretrain.model.names import to_huggingface
from pretrain.model.spec import ModelSpec
from tests.parity.recipe_workers import BATCH, BOS, SMALL, STEPS, VOCAB, WARMUP, sample
from tests.parity.test_layouts import huggingface_model
from tests.parity.workers import assemble
from tests.support.ranks import run_ranks

PEAK, END = 3e-3, 3e-4

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Clip = Callable[[list[torch.nn.Parameter]], float]


def amber_rate(step: int) -> float:
    """LLM360/amber-train main_utils.py, get_cosine_lr_decay_fn."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    return END + 0.5 * (PEAK - END) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def amber_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """LLM360/amber-train main.py: cross entropy over all positions."""
    return torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten())


def amber_clip(parameters: list[torch.nn.Parameter]) -> float:
    """LLM360/amber-train main.py: fabric.clip_gradients with max_norm 1."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))


def openllama_rate(count: int) -> float:
    """optax.warmup_cosine_decay_schedule(0, peak, warmup, decay_steps, end), as EasyLM's AdamW has it."""
    if count < WARMUP:
        return PEAK * count / WARMUP
    share = min(count - WARMUP, STEPS - WARMUP) / (STEPS - WARMUP)
    alpha = END / PEAK
    return PEAK * ((1 - alpha) * 0.5 * (1 + math.cos(math.pi * share)) + alpha)


def openllama_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """easylm/jax_utils.py, cross_entropy_loss_and_accuracy: valid are the targets that are not <s>."""
    valid_BS = (labels_BS != BOS).float()
    length_B = valid_BS.sum(-1).clamp(min=1e-10)
    of_target_BS = logits_BSV.log_softmax(-1).gather(-1, labels_BS[..., None])[..., 0]
    return -((of_target_BS * valid_BS).sum(-1) / length_B).mean()


def openllama_clip(parameters: list[torch.nn.Parameter]) -> float:
    """optax.clip_by_global_norm(1.0): scaled where the norm is 1 or more, without torch's 1e-6."""
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))
    for p in parameters:
        if p.grad is not None and norm >= 1.0:
            p.grad /= norm
    return norm


def transcription(start: list[Any], rate: Callable[[int], float], loss_of: Loss, clip: Clip) -> dict[str, Any]:
    """The published loop: rate, forward, loss, backward, global clip, AdamW with decay on every parameter."""
    spec = ModelSpec.from_config(compose(SMALL).model, VOCAB)
    model = huggingface_model(spec, start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        tokens_BT = torch.from_numpy(np.stack([sample(step * BATCH + i) for i in range(BATCH)])).long()
        loss = loss_of(model(tokens_BT[:, :-1]).logits, tokens_BT[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        norms.append(clip(list(model.parameters())))
        optimizer.step()
        losses.append(loss.item())
        rates.append(rate(step))
    return {"losses": losses, "norms": norms, "rates": rates, "weights": model.state_dict(), "spec": spec}


def _check(ranks: list[dict[str, Any]], *, rate: Callable[[int], float], loss_of: Loss, clip: Clip) -> None:
    start = [part for rank in ranks for part in rank["start"]]
    expected = transcription(start, rate, loss_of, clip)
    for rank in ranks:
        assert rank["rates"][0] == 0.0 and np.allclose(rank["rates"], expected["rates"], rtol=1e-12, atol=0)
        # fp32 against fp32, summed in another order.
        assert np.abs(np.subtract(rank["losses"], expected["losses"])).max() <= 1e-6 * max(expected["losses"])
        assert np.allclose(rank["norms"], expected["norms"], rtol=1e-4, atol=0)
    assert max(expected["norms"]) > 1.0 and expected["losses"][-1] < 0.9 * expected["losses"][0]
    weights = assemble([part for rank in ranks for part in rank["weights"]])
    found = {n: t for key, w in weights.items() for n, t in to_huggingface(key, w, expected["spec"])}
    difference = max(float((found[name] - tensor).abs().max()) for name, tensor in expected["weights"].items())
    assert difference <= 1e-4, difference  # epsilon is 1e-8: Adam turns rounding into parts of its steps of 3e-3


def test_fifty_steps_of_amber_are_those_of_its_training_code() -> None:
    ranks = run_ranks("tests.parity.recipe_workers:train", 1, (["experiment=amber_7b"], []))
    _check(ranks, rate=amber_rate, loss_of=amber_loss, clip=amber_clip)


OPENLLAMA = [
    ([], 2),
    pytest.param(["parallel.tensor=2", "parallel.sequence=true"], 2, marks=pytest.mark.slow),
    pytest.param(["parallel.pipeline=2"], 2, marks=pytest.mark.slow),
    pytest.param(["parallel.context=2"], 2, marks=pytest.mark.slow),
    pytest.param(["engine=deepspeed_zero1"], 2, marks=pytest.mark.slow),
    pytest.param(["engine=deepspeed_zero3"], 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("layout", "world_size"), OPENLLAMA, ids=str)
def test_fifty_steps_of_openllama_are_those_of_its_training_code(layout: list[str], world_size: int) -> None:
    ranks = run_ranks("tests.parity.recipe_workers:train", world_size, (["experiment=openllama_7b_v1"], layout))
    _check(ranks, rate=openllama_rate, loss_of=openllama_loss, clip=openllama_clip)
