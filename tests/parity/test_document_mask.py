"""Windows of several documents train as Hugging Face's model does when it is given one document at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.model.spec import ModelSpec
from pretrain.track import names
from tests.parity.document_workers import BATCH, STEPS, window
from tests.parity.test_layouts import _agree, huggingface_model
from tests.parity.workers import CLIP, EPSILON, LENGTH, RATE, VOCAB, Layout, configuration
from tests.support.ranks import run_ranks

LAYOUTS = [Layout("TP2, sequence parallel", tensor=2, sequence=True)]
SLOW = {
    1: [Layout("one process", micro_batch_size=4), Layout("full recomputation", recompute="full")],
    2: [
        Layout("CP2", extra={"context": 2}),
        Layout("DP2, distributed optimizer"),
        Layout("DP2, full recomputation", recompute="full"),
        Layout("DP2, selective recomputation", recompute="selective"),
        Layout("PP2", extra={"pipeline": 2}),
        Layout("PP2, full recomputation", extra={"pipeline": 2}, recompute="full"),
        Layout("PP2 x VPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("ZeRO-1", zero=1),
        Layout("ZeRO-2, full recomputation", zero=2, recompute="full"),
        Layout("ZeRO-3", zero=3),
        Layout("ZeRO-3, full recomputation", zero=3, recompute="full"),
    ],
    4: [
        Layout("TP2 x CP2, sequence parallel", tensor=2, sequence=True, extra={"context": 2}),
        Layout("PP2 x CP2", extra={"pipeline": 2, "context": 2}),
    ],
}


def reference(start: list[Any]) -> dict[str, Any]:
    """Plain torch: each document by itself, from position 0 on; the last token of each is trained to what follows."""
    spec = ModelSpec.from_config(configuration(LAYOUTS[0]).model, VOCAB)
    model = huggingface_model(spec, start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=EPSILON, weight_decay=0.1)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for index in range(step * BATCH, (step + 1) * BATCH):
            tokens, ends = window(index)
            low = 0
            while low < LENGTH:
                high = int(ends[low])
                document = torch.from_numpy(tokens[low : high + 1]).long()
                logits = model(document[None, :-1]).logits[0]
                loss = torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum")
                (loss / (BATCH * LENGTH)).backward()
                total += loss.detach().double()
                low = high
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        losses.append(float(total) / (BATCH * LENGTH))
    return {
        "losses": losses,
        "norms": norms,
        "z_losses": [None] * STEPS,
        "weights": model.state_dict(),
        "spec": spec,
    }


def _train(layouts: list[Layout], world_size: int) -> dict[str, list[dict[str, Any]]]:
    ranks = run_ranks("tests.parity.document_workers:train", world_size, layouts)
    return {per_rank[0]["name"]: list(per_rank) for per_rank in zip(*ranks, strict=True)}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict[str, Any]]]:
    return _train(LAYOUTS, 2)


@pytest.fixture(scope="module")
def oracle(trained: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return reference([part for rank in trained[LAYOUTS[0].name] for part in rank["start"]])


@pytest.fixture(scope="module")
def trained_slowly() -> dict[str, list[dict[str, Any]]]:
    return {name: ranks for size, layouts in SLOW.items() for name, ranks in _train(layouts, size).items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_window_trains_like_its_documents_one_by_one(layout: Layout, trained: Any, oracle: Any) -> None:
    _agree(trained[layout.name], oracle)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [one for layouts in SLOW.values() for one in layouts], ids=lambda one: one.name)
def test_so_it_does_in_further_layouts(layout: Layout, trained_slowly: Any, oracle: Any) -> None:
    _agree(trained_slowly[layout.name], oracle)


@pytest.mark.slow
def test_the_largest_logit_of_a_step_is_the_same_in_every_layout(trained: Any, trained_slowly: Any) -> None:
    first, *others = [ranks[0]["dynamics"] for ranks in (trained | trained_slowly).values()]
    for other in others:
        for layer in range(4):
            key = names.dynamics("largest_attention_logit", layer=layer)
            np.testing.assert_allclose(other[key], first[key], rtol=1e-4)  # after three updates, in fp32


@pytest.mark.slow
def test_bf16_masks_as_fp32_does() -> None:
    layouts = [Layout("fp32", micro_batch_size=4), Layout("bf16", micro_batch_size=4, compute="bf16")]
    (fp32,), (bf16,) = _train(layouts, 1).values()
    np.testing.assert_allclose(bf16["losses"], fp32["losses"], rtol=2e-3)  # 8 bits a value; errors cancel in the mean
