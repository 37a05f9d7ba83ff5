"""Greedy generation on the live model gives the ids of Hugging Face's `generate`, in every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.model.spec import ModelSpec
from tests.parity.generation_workers import LENGTHS, NEW_TOKENS, ends_on_a_multiple_of_nine, prompts
from tests.parity.test_layouts import huggingface_model
from tests.parity.workers import VOCAB, Layout, configuration
from tests.support.ranks import run_ranks

LAYOUTS = {
    1: [Layout("one process")],
    2: [
        Layout("TP2, sequence parallel", tensor=2, sequence=True),
        Layout("PP2 x VPP2", extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("ZeRO-3", zero=3),
        Layout("DP2"),
        Layout("TP2 x ZeRO-3", zero=3, tensor=2),
        Layout("PP2", extra={"pipeline": 2}),
        Layout("CP2", extra={"context": 2}),
        Layout("TP2", tensor=2),
        Layout("PP2, tied", extra={"pipeline": 2}, tie_embeddings=True),
    ],
    4: [
        Layout("DP2 x TP2, sequence parallel", tensor=2, sequence=True),
        Layout("TP2 x PP2 x VPP2", tensor=2, extra={"pipeline": 2, "virtual_pipeline": 2}),
        Layout("PP2 x CP2", extra={"pipeline": 2, "context": 2}),
    ],
}
QUICK = 3
"""So many layouts of two processes are tested by default."""
NAMES = [
    pytest.param(size, index, id=layout.name, marks=[pytest.mark.slow] if size > 2 or index >= QUICK else [])
    for size, layouts in LAYOUTS.items()
    for index, layout in enumerate(layouts)
]
every_layout = pytest.mark.parametrize(("size", "index"), NAMES)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Results of each rank, by (world size, index of the layout)."""
    slow = any(item.get_closest_marker("slow") for item in request.session.items if item.fspath == request.fspath)
    found = {}
    for size in LAYOUTS if slow else (1, 2):
        layouts = LAYOUTS[size] if slow else LAYOUTS[size][:QUICK]
        ranks = run_ranks("tests.parity.generation_workers:run", size, layouts, timeout_seconds=900)
        for index in range(len(layouts)):
            found[size, index] = [rank[index] for rank in ranks]
    return found


@pytest.fixture(scope="module")
def expected(results: Any) -> dict[bool, list[list[int]]]:
    """Twenty new ids after every prompt, with embeddings tied or not, by Hugging Face."""
    answers = {}
    for (size, index), ranks in results.items():
        layout = LAYOUTS[size][index]
        if layout.tie_embeddings in answers:
            continue
        config = configuration(layout)
        parts = [part for rank in ranks for part in rank["start"]]
        model = huggingface_model(ModelSpec.from_config(config.model, VOCAB), parts).eval()
        model.generation_config.eos_token_id = None
        answers[layout.tie_embeddings] = [_continued(model, prompt) for prompt in prompts()]
    return answers


def _continued(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for scores in out.scores:
        first, second = scores[0].topk(2).values.tolist()
        assert first - second > 1e-3, "a near tie says nothing: choose another prompt"  # fp32 noise is 1e-5 here
    return out.sequences[0, len(prompt) :].tolist()


def _cut(ids: list[int], ends: Any) -> list[int]:
    stop = next((place for place, token in enumerate(ids) if ends(token)), len(ids))
    return ids[: stop + 1]


@every_layout
def test_ids_equal_those_of_hugging_face_on_every_rank(size: int, index: int, results: Any, expected: Any) -> None:
    answers = expected[LAYOUTS[size][index].tie_embeddings]
    for rank in results[size, index]:
        assert rank["plain"] == [ids[:number] for ids, number in zip(answers, NEW_TOKENS, strict=True)]
        assert rank["nothing"] == []


@every_layout
def test_an_answer_ends_with_the_first_stop_id_or_where_it_is_done(
    size: int, index: int, results: Any, expected: Any
) -> None:
    answers = expected[LAYOUTS[size][index].tie_embeddings]
    wanted = [
        _cut(ids, lambda token: token % 6 == 0) if i % 2 else _cut(ids, lambda t: ends_on_a_multiple_of_nine([t]))
        for i, ids in enumerate(answers)
    ]
    assert len({len(ids) for ids in wanted}) > 4 and max(map(len, wanted)) > 10
    for rank in results[size, index]:
        assert rank["stopped"] == wanted


@every_layout
def test_training_goes_on_bitwise_as_if_nothing_had_been_generated(size: int, index: int, results: Any) -> None:
    for rank in results[size, index]:
        assert rank["random_state_kept"] and rank["training"]
        without, beside = rank["weights"]
        for (key, *place, values), (other, *same, found) in zip(without, beside, strict=True):
            assert (key, place) == (other, same)
            np.testing.assert_array_equal(values, found)


@every_layout
def test_ranks_fail_together_and_generate_again(size: int, index: int, results: Any) -> None:
    for rank in results[size, index]:
        assert rank["failed"] == f"Scoring failed on rank {size - 1}: MemoryError: no memory"
        assert rank["same_after_failure"]
        assert all(found == wanted for found, wanted in rank["passes"]) and rank["passes"]
        differ, *misfits = rank["refused"]
        assert differ == "none" if size == 1 else "different prompts" in differ
        assert all("Request 0 to generate has an empty prompt or max_new_tokens below 1" in said for said in misfits)


def test_prompts_outnumber_slots_and_differ_in_length() -> None:
    assert len(set(LENGTHS)) > 8 and len(LENGTHS) == len(NEW_TOKENS) == 12
