"""What `data` may not say, and what it may."""

from __future__ import annotations

import functools

import pytest

from pretrain.config.checks import find_problems
from pretrain.config.data_checks import data_problems
from pretrain.config.load import compose
from pretrain.config.run import RunConfig

BOOKS = "data.sources.books"
TWO = ["data=files", f"{BOOKS}.paths=[a.jsonl]", "data.sources.web.paths=[b.jsonl]"]
CHUNKS = ["data=files", f"{BOOKS}.weight=1", "data.token_chunks=[train_*.jsonl]", "tokenizer.path=t.model"]


@functools.cache
def problems(*overrides: str) -> list[str]:
    config: RunConfig = compose(list(overrides))
    return list(data_problems(config))


@pytest.mark.parametrize(
    "overrides",
    [
        TWO,
        [*TWO, f"{BOOKS}.tokens=1000", "data.sources.web.epochs=2.5"],
        [*TWO, f"{BOOKS}.tokens=1000", "data.sources.web.weight=0"],
        [*TWO, "data.order=sequential", "data.sources.web.weight=0"],
        [*TWO, "data.order=chunked", 'data.skip=["0:8","100:1000"]'],
        [*CHUNKS, "data.order=chunked"],
    ],
)
def test_what_can_run_has_no_problems(overrides: list[str]) -> None:
    assert problems(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data=files"], "data.sources is empty"),
        ([*TWO, "data.sources.new.weight=1"], "data.sources.new has no paths"),
        ([*TWO, f"{BOOKS}.tokens=5", f"{BOOKS}.epochs=1"], "Give one of them"),
        ([*TWO, f"{BOOKS}.tokens=0"], "data.sources.books.tokens=0 must be at least 1"),
        ([*TWO, f"{BOOKS}.epochs=-1"], "data.sources.books.epochs=-1.0 must be above 0"),
        ([*TWO, f"{BOOKS}.epochs=1"], "books have tokens or epochs, web a weight"),
        ([*TWO, f"{BOOKS}.weight=0", "data.sources.web.weight=0"], "Every source has weight 0"),
        ([*TWO, "data.order=sequential", f"{BOOKS}.weight=3"], "the shares of books would have no effect"),
        ([*TWO, "data.order=chunked", f"{BOOKS}.tokens=9", "data.sources.web.tokens=9"], "would have no effect"),
        ([*TWO, "data.order=chunked", "train.batch_ramp=[{until: 1 steps, global_batch_size: 4}]"], "would cut anew"),
        ([*TWO, 'data.skip=["9:3"]'], "data.skip[0]='9:3' is empty"),
        (CHUNKS, "data.order='mixture' knows none"),
        ([*CHUNKS, "data.order=chunked", f"{BOOKS}.paths=[a.jsonl]"], "beside data.token_chunks"),
        ([*CHUNKS, "data.order=chunked", "data.document_mask=true"], "which rows of data.token_chunks do not say"),
    ],
)
def test_what_cannot_run_is_told_with_the_remedy(overrides: list[str], reason: str) -> None:
    assert any(reason in problem for problem in problems(*overrides)), problems(*overrides)


def test_a_run_over_chunks_needs_their_tokenizer_and_a_plan_does_not() -> None:
    config = compose([*CHUNKS, "data.order=chunked", "tokenizer.path=null"])
    assert [problem for problem in find_problems(config) if "would train another" in problem]
    assert not [problem for problem in find_problems(config, files=False) if "tokenizer" in problem]
