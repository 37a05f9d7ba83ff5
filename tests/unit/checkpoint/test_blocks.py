import math
import random

import numpy as np
import pytest
import torch

from pretrain.checkpoint.blocks import Block, boxes, cut, replica_share
from pretrain.checkpoint.coverage import Piece, coverage_problem


@pytest.mark.parametrize("seed", range(200))
def test_boxes_are_the_flat_range_in_order(seed):
    rng = random.Random(seed)
    shape = tuple(rng.randint(1, 6) for _ in range(rng.randint(1, 4)))
    total = math.prod(shape)
    start, end = sorted((rng.randint(0, total), rng.randint(0, total)))
    whole = np.arange(total).reshape(shape)
    found, at = [], start
    for flat, offset, extent in boxes(shape, start, end):
        assert flat == at
        found.append(whole[tuple(slice(o, o + e) for o, e in zip(offset, extent, strict=True))].reshape(-1))
        at += math.prod(extent)
    assert len(found) <= 2 * len(shape) - 1
    np.testing.assert_array_equal(np.concatenate(found) if found else [], np.arange(start, end))


def test_a_cut_gives_owned_blocks_only_and_views():
    blocks = [Block("a", (2, 3), (0, 0), (2, 3)), Block("b", (4,), (0,), (4,), 6, is_owner=False)]
    blocks.append(Block("c", (5,), (0,), (5,), 10))
    values = torch.arange(10.0)
    chunks = list(cut(blocks, 4, {"param": values}))
    assert [(c.block.key, c.start, c.tensors["param"].tolist()) for c in chunks] == [
        ("a", 4, [0.0, 1.0]),
        ("c", 0, [6.0, 7.0, 8.0, 9.0]),
    ]
    chunks[0].tensors["param"][0] = 99
    assert values[0] == 99


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7, 50])
def test_replicas_share_every_element_once_and_evenly(num_replicas):
    sizes = [5, 1, 0, 17, 3]
    shares = [list(replica_share(sizes, replica=r, num_replicas=num_replicas)) for r in range(num_replicas)]
    seen = sorted((index, e) for share in shares for index, a, z in share for e in range(a, z))
    assert seen == [(index, e) for index, size in enumerate(sizes) for e in range(size)]
    counts = [sum(z - a for _, a, z in share) for share in shares]
    assert max(counts) - min(counts) <= 1


def _pieces():
    return [Piece("w", (0, 0), (4, 3), 0, 5), Piece("w", (0, 0), (4, 3), 5, 7), Piece("w", (0, 3), (4, 2), 0, 8)]


def test_a_complete_cover_has_no_problem():
    assert coverage_problem({"w": (4, 5)}, _pieces()) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:1] + p[2:], "5 of 12"),
        (lambda p: p[1:], "missing"),
        (lambda p: p[:2], "8 of 20 elements are missing"),
        (lambda p: [*p, p[0]], "twice"),
        (lambda p: [*p, Piece("w", (1, 1), (2, 2), 0, 4)], "overlap"),
        (lambda p: [*p, Piece("v", (0,), (1,), 0, 1)], "not among"),
        (lambda p: [*p, Piece("w", (3, 0), (2, 5), 0, 10)], "not inside"),
        (lambda p: [*p, Piece("w", (0,), (4,), 0, 4)], "not inside"),
    ],
)
def test_gaps_overlaps_and_strangers_are_named(change, message):
    assert message in coverage_problem({"w": (4, 5)}, change(_pieces()))
