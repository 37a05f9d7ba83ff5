"""Where the time of a scoring pass goes: clocks around the parts of the model and of the scorer, for one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def share_of_parts(score: Callable[[], Any]) -> dict[str, float]:
    """Runs a pass with clocks in it (a few per cent slower) and gives the share of each part.

    `rest` is norms, activations, rotary embeddings, residual sums and the pipeline's bookkeeping.
    """
    from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

    from pretrain.engine.sharded.head import Head
    from pretrain.model.layers.attention import CoreAttention
    from pretrain.model.layers.tree import TreeMask

    places: list[tuple[Any, str, str]] = [
        (CoreAttention, "forward", "attention"),
        (ColumnParallelLinear, "forward", "linear_layers"),
        (RowParallelLinear, "forward", "linear_layers"),
        (LanguageModelEmbedding, "forward", "embedding"),
        (TreeMask, "__init__", "masks"),
        (Head, "add", "head"),
        (Head, "merge", "merge"),
    ]
    seconds = dict.fromkeys((part for _, _, part in places), 0.0)
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, part in places:
            setattr(owner, name, _clocked(getattr(owner, name), part, seconds))
        start = time.perf_counter()
        score()
        total = time.perf_counter() - start
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    shares = {part: spent / total for part, spent in seconds.items()}
    return shares | {"rest": 1.0 - sum(shares.values())}


def _clocked(function: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def clocked(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[part] += time.perf_counter() - start

    return clocked
