"""What the ranks of the tests of scoring's attention run: a fresh model scores packed rows, apart or together."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from pretrain.engine.job import Job
from pretrain.engine.sharded import score as scoring
from pretrain.engine.sharded import staged
from pretrain.model.layers.tree import TreeMask
from tests.parity.test_scoring_repeats import rows
from tests.parity.workers import build, full_weights

PASSES = 3
"""The first compiles, the second finds lengths that vary."""


def score(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per layout: weights, and what the last pass answered.

    Args:
        payload: `layouts`; `apart`, whether prefix and blocks are attended to apart (None: as the product chooses);
            `watch`, whether the last pass fails where the host waits for a GPU.
    """
    job, found = Job(timeout_minutes=5), []
    staged.TreeMask = functools.partial(TreeMask, apart=payload["apart"])  # type: ignore[misc]
    for layout in payload["layouts"]:
        built = build(layout, job)
        weights = full_weights(built.engine)
        for _ in range(PASSES - 1):
            built.engine.score(rows())
        with _watched() if payload["watch"] else contextlib.nullcontext():
            answers = built.engine.score(rows())
        found.append({"weights": weights, "answers": answers, "spec": built.spec})
        built.engine.close()
    job.close()
    return found


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """All rows' passes, between the ranks' agreement before and the answers after them."""
    original = scoring.run_ring

    def watched(*arguments: Any, **options: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    scoring.run_ring = watched
    try:
        yield
    finally:
        scoring.run_ring = original
