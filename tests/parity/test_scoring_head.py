"""The head of scoring against log-softmax over the whole vocabulary: tiles, shards, ties, padding rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.engine.base import PackedRow
from tests.support.ranks import run_ranks

VOCAB, PADDED, HIDDEN = 997, 1536, 32  # with 4 ranks the last one holds padding rows only
TILES = ((512, 2048), (7, 64))
"""Everything in one; many."""


def rows() -> list[tuple[np.ndarray, PackedRow]]:
    """Hidden states and rows; a fifth of the pairs asks for the greedy token."""
    rng = np.random.default_rng(0)
    found, first_id = [], 0
    for length in (64, 32, 16):
        hidden_SH = rng.normal(size=(length, HIDDEN)).astype(np.float32)
        wanted = np.sort(rng.choice(length, length // 2, replace=False)).astype(np.int64)
        places = np.sort(rng.integers(0, len(wanted), 3 * len(wanted)))
        targets = rng.integers(0, VOCAB, len(places))
        logits = hidden_SH[wanted] @ weights()[:VOCAB].T
        targets[::5] = logits.argmax(-1)[places[::5]]
        targets[1] = 500  # equal to row 3 in every bit: never the first of the maxima
        ids = np.arange(first_id, first_id + len(places))
        empty = np.zeros(length, np.int32)
        found.append((hidden_SH, PackedRow(0, 0, 0, empty, empty, empty, length, wanted, places, targets, ids)))
        first_id += len(places)
    return found


def weights() -> np.ndarray:
    """[PADDED, HIDDEN]; rows 3, 500 and 900 are one, padding rows would win every time."""
    rng = np.random.default_rng(1)
    weight_VH = rng.normal(size=(PADDED, HIDDEN)).astype(np.float32) * 0.5
    weight_VH[3] *= 3  # often the largest
    weight_VH[500] = weight_VH[900] = weight_VH[3]
    weight_VH[VOCAB:] = 100.0
    return weight_VH


def reduce(sequence: bool) -> list[np.ndarray]:
    """What ranks run: for each tile size [2, pairs], summed over ranks as `score_rows` does."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from pretrain.engine.job import Job
    from pretrain.engine.sharded import head
    from pretrain.model.kernels import Kernels

    job = Job(timeout_minutes=5)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=job.world_size)
    rank, size = job.rank, job.world_size
    part = torch.from_numpy(weights()).chunk(size)[rank]
    config = SimpleNamespace(sequence_parallel=sequence, kernels=Kernels())
    layer = SimpleNamespace(weight=part)
    results = []
    for head._CPU_TILE in TILES:
        merged = head.Head(VOCAB)
        for hidden_SH, row in rows():
            hidden = torch.from_numpy(hidden_SH)[:, None]
            mine = hidden.chunk(size)[rank] if sequence else hidden
            merged.add(SimpleNamespace(config=config, output_layer=layer), mine, row)
        answers = merged.merge(sum(len(row.pair_id_P) for _, row in rows()), job.device)
        dist.all_reduce(answers)
        results.append(answers.numpy().copy())
    parallel_state.destroy_model_parallel()
    job.close()
    return results


@pytest.mark.parametrize(("ranks", "sequence"), [(1, False), (2, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_head_gives_log_softmax_and_the_first_of_equal_maxima(ranks: int, sequence: bool):
    for results in zip(*run_ranks("tests.parity.test_scoring_head:reduce", ranks, sequence), strict=True):
        assert all(np.array_equal(result, results[0]) for result in results)
        num_greedy = 0
        for hidden_SH, row in rows():
            exact = torch.from_numpy(hidden_SH[row.wanted_W]).double() @ torch.from_numpy(weights()[:VOCAB]).double().T
            log_probs = torch.log_softmax(exact, -1).numpy()[row.pair_wanted_P, row.pair_target_P]
            greedy = exact.argmax(-1).numpy()[row.pair_wanted_P] == row.pair_target_P
            # fp32 products of 32 terms, logits up to 20: a few units of 1e-6.
            np.testing.assert_allclose(results[0][0, row.pair_id_P], log_probs, rtol=0, atol=1e-5)
            np.testing.assert_array_equal(results[0][1, row.pair_id_P] > 0.5, greedy)
            num_greedy += int(greedy.sum())
        assert num_greedy > 20
