"""Every layout computes what Hugging Face's LlamaForCausalLM with torch's AdamW computes on one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.model.names import to_huggingface
from pretrain.model.spec import ModelSpec
from tests.parity.workers import (
    BATCH,
    CLIP,
    EPSILON,
    FUSED,
    LENGTH,
    RATE,
    VOCAB,
    Layout,
    assemble,
    configuration,
    sample,
)
from tests.support.ranks import run_ranks

Z_LOSS = 1e-2  # a hundred times the usual: at the start 0.47 beside a loss of 6.9, so that an error shows

SLOW = [
    Layout("DP2, plain, overlapped", distributed_optimizer=False),
    Layout("TP2, plain", tensor=2, distributed_optimizer=False),
    Layout("DP2, no norm decay", decay="matrices"),
    Layout("DP2, full recomputation", recompute="full"),
    Layout("DP2, selective recomputation", recompute="selective"),
    Layout("PP2, tied", extra={"pipeline": 2}, tie_embeddings=True),
    Layout("PP2, z-loss", extra={"pipeline": 2}, z_loss=Z_LOSS),
    Layout("TP2, tied", tensor=2, tie_embeddings=True),
    Layout("DP2, distributed optimizer", overlap=False),
    Layout("DP2, fused, no norm decay", kernels=FUSED, decay="matrices"),
    Layout("DP2, fused, plain, full recomputation", kernels=FUSED, distributed_optimizer=False, recompute="full"),
    Layout("TP2, fused, tied", kernels=FUSED, tensor=2, tie_embeddings=True),
    Layout("TP2, fused, z-loss", kernels=FUSED, tensor=2, z_loss=Z_LOSS),
    Layout("PP2, fused, tied", kernels=FUSED, extra={"pipeline": 2}, tie_embeddings=True),
    Layout("PP2 x VPP2, fused", kernels=FUSED, extra={"pipeline": 2, "virtual_pipeline": 2}),
    Layout("CP2, fused, selective", kernels=FUSED, extra={"context": 2}, recompute="selective"),
]
LAYOUTS = {
    1: [
        Layout("one process", micro_batch_size=4),
        Layout("tied", tie_embeddings=True),
        Layout("no norm decay", decay="matrices"),
        Layout("z-loss", z_loss=Z_LOSS),
        Layout("fused", kernels=FUSED),
    ],
    2: [
        Layout("DP2, distributed optimizer, overlapped"),
        Layout("DP2, plain", distributed_optimizer=False, overlap=False),
        Layout("TP2", tensor=2),
        Layout("TP2, sequence parallel", tensor=2, sequence=True),
        Layout("PP2", extra={"pipeline": 2}),
        Layout("PP2 x VPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("CP2", extra={"context": 2}),
        Layout("TP2, z-loss", tensor=2, z_loss=Z_LOSS),
        Layout("DP2, fused", kernels=FUSED),
        Layout(
            "TP2, sequence parallel, fused, selective", kernels=FUSED, tensor=2, sequence=True, recompute="selective"
        ),
        Layout("PP2, fused", kernels=FUSED, extra={"pipeline": 2}),
    ],
    4: [
        Layout("DP2 x TP2", tensor=2),
        Layout("DP2 x TP2, sequence parallel", tensor=2, sequence=True),
        Layout("DP2 x PP2", extra={"pipeline": 2}),
        Layout("DP2 x PP2 x VPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("DP2 x CP2", extra={"context": 2}),
        Layout("TP2 x PP2, sequence parallel", tensor=2, sequence=True, extra={"pipeline": 2}),
        Layout("TP2 x CP2, sequence parallel", tensor=2, sequence=True, extra={"context": 2}),
        Layout("PP2 x CP2", extra={"pipeline": 2, "context": 2}),
        Layout("PP4", extra={"pipeline": 4}),
        Layout("DP2 x TP2, sequence parallel, fused", kernels=FUSED, tensor=2, sequence=True),
    ],
    8: [
        Layout("DP2 x TP2 x PP2, sequence parallel", tensor=2, sequence=True, extra={"pipeline": 2}),
        Layout("TP2 x PP2 x CP2", tensor=2, extra={"pipeline": 2, "context": 2}),
        Layout("DP2 x TP2 x PP2, sequence parallel, fused", 2, True, kernels=FUSED, extra={"pipeline": 2}),
        Layout("DP2 x PP2 x VPP2 x CP2", extra={"pipeline": 2, "virtual_pipeline": 2, "context": 2}),
    ],
}


def huggingface_model(spec: ModelSpec, start: list[Any]) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = spec.config_json(sequence_length=LENGTH)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    weights = {n: t for key, w in assemble(start).items() for n, t in to_huggingface(key, w, spec)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if spec.tie_embeddings else set()) and not unexpected
    return model


def reference(layout: Layout, start: list[Any], steps: int = 20) -> dict[str, Any]:
    """Plain torch: forward, mean cross entropy (and z-loss), clip_grad_norm_, AdamW."""
    config = configuration(layout)
    spec = ModelSpec.from_config(config.model, VOCAB)
    model = huggingface_model(spec, start)
    exempt = [p for p in model.parameters() if p.dim() == 1 and layout.decay == "matrices"]
    decayed = [p for p in model.parameters() if not any(p is q for q in exempt)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=EPSILON)
    losses, norms, z_losses = [], [], []
    for step in range(steps):
        tokens = torch.from_numpy(np.stack([sample(step * BATCH + i) for i in range(BATCH)])).long()
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        z_loss = layout.z_loss * logits.logsumexp(-1).square().mean()
        optimizer.zero_grad()
        (loss + z_loss if layout.z_loss else loss).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        losses.append(loss.item())
        z_losses.append(z_loss.item() if layout.z_loss else None)
    return {"losses": losses, "norms": norms, "z_losses": z_losses, "weights": model.state_dict(), "spec": spec}


def reference_bf16(layout: Layout, start: list[Any], steps: int = 20) -> dict[str, Any]:
    """Plain torch in mixed precision: bf16 weights and activations; fp32 gradient sums, master weights and moments."""
    config = configuration(layout)
    spec = ModelSpec.from_config(config.model, VOCAB)
    model = huggingface_model(spec, start)
    master = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.AdamW(master, lr=RATE, betas=(0.9, 0.95), eps=EPSILON, weight_decay=0.1)
    losses, norms = [], []
    for step in range(steps):
        for p, m in zip(model.parameters(), master, strict=True):
            p.data, m.grad = m.detach().bfloat16(), torch.zeros_like(m)  # buffers (rotary frequencies) stay fp32
        total = 0.0
        for first in range(0, BATCH, layout.micro_batch_size):
            indices = range(step * BATCH + first, step * BATCH + first + layout.micro_batch_size)
            tokens = torch.from_numpy(np.stack([sample(i) for i in indices])).long()
            logits = model(tokens[:, :-1]).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
            (loss / (BATCH * LENGTH)).backward()
            total += loss.item()
            for p, m in zip(model.parameters(), master, strict=True):
                m.grad += p.grad.float()
                p.grad = None
        norms.append(float(torch.nn.utils.clip_grad_norm_(master, CLIP)))
        optimizer.step()
        losses.append(total / (BATCH * LENGTH))
    return {"losses": losses, "norms": norms}


Training = tuple[bool, str, float]


def _training(layout: Layout) -> Training:
    """What sets a layout's numbers apart: layouts that agree in it train alike."""
    return layout.tie_embeddings, layout.decay, layout.z_loss


@pytest.fixture(scope="module")
def single() -> dict[str, dict[str, Any]]:
    results = run_ranks("tests.parity.workers:train", 1, LAYOUTS[1])[0]
    return {result["name"]: result for result in results}


@pytest.fixture(scope="module")
def references(single: dict[str, dict[str, Any]]) -> dict[Training, dict[str, Any]]:
    return {_training(layout): reference(layout, single[layout.name]["start"]) for layout in LAYOUTS[1]}


def _train(world_size: int, layouts: list[Layout] | None = None) -> dict[str, list[dict[str, Any]]]:
    ranks = run_ranks("tests.parity.workers:train", world_size, layouts or LAYOUTS[world_size])
    return {per_rank[0]["name"]: list(per_rank) for per_rank in zip(*ranks, strict=True)}


@pytest.fixture(scope="module")
def double() -> dict[str, list[dict[str, Any]]]:
    return _train(2)


@pytest.fixture(scope="module")
def double_slow() -> dict[str, list[dict[str, Any]]]:
    return _train(2, SLOW)


@pytest.fixture(scope="module")
def quadruple() -> dict[str, list[dict[str, Any]]]:
    return _train(4)


@pytest.fixture(scope="module")
def octuple() -> dict[str, list[dict[str, Any]]]:
    return _train(8)


def _agree(ranks: list[dict[str, Any]], oracle: dict[str, Any]) -> None:
    for result in ranks:
        np.testing.assert_allclose(result["losses"], oracle["losses"], rtol=1e-6)  # the bar; fp32 sum order
        np.testing.assert_allclose(result["norms"], oracle["norms"], rtol=1e-5)
        if None in oracle["z_losses"]:
            assert result["z_losses"] == oracle["z_losses"]
        else:
            np.testing.assert_allclose(result["z_losses"], oracle["z_losses"], rtol=1e-6)
    parts = [part for result in ranks for part in result["weights"]]
    weights = {n: t for key, w in assemble(parts).items() for n, t in to_huggingface(key, w, oracle["spec"])}
    for name, expected in oracle["weights"].items():
        if name == "lm_head.weight" and oracle["spec"].tie_embeddings:
            continue
        # The rate is 1e-3, so 20 steps move a weight by up to 2e-2: this is 5e-4 of that.
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS[1], ids=lambda layout: layout.name)
def test_one_process_trains_like_hugging_face(layout: Layout, single: Any, references: Any) -> None:
    _agree([single[layout.name]], references[_training(layout)])


@pytest.mark.parametrize("layout", LAYOUTS[2], ids=lambda layout: layout.name)
def test_two_processes_train_and_validate_like_one(layout: Layout, double: Any, single: Any, references: Any) -> None:
    _agree(double[layout.name], references[_training(layout)])
    _validates_alike(double[layout.name], layout, single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SLOW, ids=lambda layout: layout.name)
def test_two_processes_train_like_one_in_further_layouts(
    layout: Layout, double_slow: Any, single: Any, references: Any
) -> None:
    _agree(double_slow[layout.name], references[_training(layout)])
    _validates_alike(double_slow[layout.name], layout, single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[4], ids=lambda layout: layout.name)
def test_four_processes_train_and_validate_like_one(
    layout: Layout, quadruple: Any, single: Any, references: Any
) -> None:
    _agree(quadruple[layout.name], references[_training(layout)])
    _validates_alike(quadruple[layout.name], layout, single)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[8], ids=lambda layout: layout.name)
def test_eight_processes_train_and_validate_like_one(
    layout: Layout, octuple: Any, single: Any, references: Any
) -> None:
    _agree(octuple[layout.name], references[_training(layout)])
    _validates_alike(octuple[layout.name], layout, single)


def _validates_alike(ranks: list[dict[str, Any]], layout: Layout, single: Any) -> None:
    same = next(one for one in LAYOUTS[1] if _training(one) == _training(layout))
    for result in ranks:
        np.testing.assert_allclose(result["validation"], single[same.name]["validation"], rtol=1e-6)


SCORED = ["DP2, distributed optimizer, overlapped", "TP2, sequence parallel", "PP2 x VPP2", "CP2"]


@pytest.fixture(scope="module")
def scored() -> dict[str, list[dict[str, Any]]]:
    """Trained like `double`, and scored every five steps."""
    layouts = [Layout(**{**vars(layout), "score": True}) for layout in LAYOUTS[2] if layout.name in SCORED]
    ranks = run_ranks("tests.parity.workers:train", 2, layouts)
    return {per_rank[0]["name"]: list(per_rank) for per_rank in zip(*ranks, strict=True)}


@pytest.mark.parametrize("name", SCORED)
def test_scoring_during_training_leaves_every_weight_bitwise_the_same(name: str, double: Any, scored: Any) -> None:
    for quiet, disturbed in zip(double[name], scored[name], strict=True):
        assert quiet["losses"] == disturbed["losses"]
        for (*_, expected), (*_, got) in zip(quiet["weights"], disturbed["weights"], strict=True):
            assert np.array_equal(expected, got)


BF16 = {
    1: [Layout("one process", compute="bf16")],
    2: [
        Layout("DP2", compute="bf16"),
        Layout("DP2, plain", compute="bf16", distributed_optimizer=False),
        Layout("TP2, sequence parallel", compute="bf16", tensor=2, sequence=True),
        Layout("PP2 x VPP2", compute="bf16", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("CP2", compute="bf16", extra={"context": 2}),
        Layout("DP2, fused", compute="bf16", kernels=FUSED),
        Layout("DP2, fused, plain", compute="bf16", kernels=FUSED, distributed_optimizer=False),
    ],
}


@pytest.fixture(scope="module")
def bf16() -> dict[str, dict[str, Any]]:
    """Results of rank 0 by layout, and plain torch's under `oracle`."""
    found = {}
    for world_size, layouts in BF16.items():
        for result in run_ranks("tests.parity.workers:train", world_size, layouts)[0]:
            found[result["name"]] = result
    layout = BF16[1][0]
    return found | {"oracle": reference_bf16(layout, found[layout.name]["start"])}


@pytest.mark.parametrize("name", [layout.name for layouts in BF16.values() for layout in layouts])
def test_bf16_trains_like_hugging_face_in_bf16_with_fp32_master_weights(name: str, bf16: Any) -> None:
    # bf16 keeps 8 bits: one rounding is up to 4e-3 of a value. Loss and norm are sums over many, whose errors cancel.
    np.testing.assert_allclose(bf16[name]["losses"], bf16["oracle"]["losses"], rtol=5e-4)
    np.testing.assert_allclose(bf16[name]["norms"], bf16["oracle"]["norms"], rtol=1e-2)
