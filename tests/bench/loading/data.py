"""The tokens that all contenders read: one `.bin/.idx` pair, and an Arrow table of its windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.loading.contenders import SEQUENCE_LENGTH


def write(folder: Path, *, num_tokens: int) -> None:
    """Documents of 50 to 2,000 random ids as uint16, by megatron-core's builder, and rows of 2,049 of them as int32."""
    import torch
    from datasets import Dataset, Features, Sequence, Value
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    rng = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{folder / 'tokens'}.bin", dtype=np.uint16)
    left = num_tokens
    while left:
        length = min(left, int(rng.integers(50, 2001)))
        builder.add_document(torch.from_numpy(rng.integers(1, 32_000, size=length, dtype=np.int32)), [length])
        left -= length
    builder.finalize(f"{folder / 'tokens'}.idx")
    tokens = np.fromfile(f"{folder / 'tokens'}.bin", dtype=np.uint16)

    def rows() -> Iterator[dict[str, Any]]:
        for start in range(0, num_tokens - SEQUENCE_LENGTH, SEQUENCE_LENGTH):
            yield {"input_ids": tokens[start : start + SEQUENCE_LENGTH + 1].astype(np.int32)}

    features = Features({"input_ids": Sequence(Value("int32"), length=SEQUENCE_LENGTH + 1)})
    dataset = Dataset.from_generator(rows, features=features, cache_dir=str(folder / "cache"))
    dataset.save_to_disk(str(folder / "rows"), num_shards=8)
