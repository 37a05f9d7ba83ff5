"""Microbatches on their way to the device, against numpy; one way there for all engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pretrain.engine
from pretrain.engine.base import Batch
from pretrain.engine.sharded.batches import microbatches
from pretrain.model.layers.attention import zigzag_positions

LENGTH = 12


def batch(*, masked: bool) -> Batch:
    """Three microbatches of two sequences."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 100, (3, 2, LENGTH + 1), dtype=np.int32)
    ends = np.where(np.arange(LENGTH) < 5, 5, LENGTH).astype(np.int32)
    extra = {}
    if masked:
        extra["ends_MBS"] = np.broadcast_to(ends, (3, 2, LENGTH)).copy()
        extra["weights_MBS"] = rng.random((3, 2, LENGTH), dtype=np.float32)
    return Batch(tokens, first_sample=0, num_samples=6, source_tokens={}, **extra)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_each_rank_of_a_context_gets_its_positions_of_every_microbatch(size: int, masked: bool) -> None:
    given = batch(masked=masked)
    positions = [zigzag_positions(LENGTH // size, rank=rank, size=size) for rank in range(size)]
    for rank, mine in enumerate(positions):
        parts = list(microbatches(given, positions, context_rank=rank, dtype=torch.float32))
        assert len(parts) == 3
        for number, part in enumerate(parts):
            np.testing.assert_array_equal(part.tokens_BS, given.tokens_MBT[number][:, mine])
            np.testing.assert_array_equal(part.labels_BS, given.tokens_MBT[number][:, mine + 1])
            np.testing.assert_array_equal(part.position_ids_BS, np.broadcast_to(mine, (2, LENGTH // size)))
            assert part.tokens_BS.dtype == part.labels_BS.dtype == torch.int64
            if not masked:
                assert part.mask is None and part.weights_BS is None
                continue
            assert given.weights_MBS is not None and given.ends_MBS is not None and part.mask is not None
            np.testing.assert_array_equal(part.weights_BS, given.weights_MBS[number][:, mine])
            keys = torch.cat(positions).numpy()
            for row, query in enumerate(mine.tolist()):
                seen = (keys <= query) & (query < given.ends_MBS[number][:, keys])
                np.testing.assert_array_equal(part.mask[:, 0, row] == 0, seen)


def test_no_engine_has_a_way_of_its_own_from_the_host_to_the_device() -> None:
    """`to_device` goes through page-locked memory; `torch.from_numpy(…).to(device)` makes the host wait."""
    folder = Path(pretrain.engine.__path__[0])
    sources = {path.relative_to(folder): path.read_text("utf-8") for path in folder.rglob("*.py")}
    assert [str(path) for path, text in sources.items() if "from_numpy" in text] == []
