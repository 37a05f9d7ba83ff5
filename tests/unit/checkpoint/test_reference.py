import base64

import numpy as np
import pytest

from pretrain.checkpoint.reference import (
    COMPUTES,
    VERSION,
    Reference,
    prompts,
    reference_rows,
    take_reference,
    targets,
)
from pretrain.engine.base import TokenLogProbs


@pytest.mark.parametrize("vocab_size", [1, 7, 300, 4096, 4097, 32_000, 256_000])
def test_prompts_and_targets_are_ids_of_the_vocabulary_and_cover_a_small_one(vocab_size):
    for ids in (prompts(vocab_size), targets(vocab_size)):
        assert ids.min() >= 0 and ids.max() < vocab_size
    asked = targets(vocab_size)
    assert asked.shape == (4, 16, 64)
    assert len(np.unique(asked)) == min(vocab_size, 4096)
    if vocab_size >= 4096:  # each position asks all over the vocabulary, not one corner of it
        assert (asked.max(-1) - asked.min(-1)).min() > 0.95 * vocab_size


@pytest.mark.parametrize("vocab_size", [300, 997, 32_000])
def test_version_1_means_these_prompts_and_targets(vocab_size):
    assert VERSION == 1, "records of version 1 were made with the ids below"
    for place, (token, ids) in enumerate(
        zip(prompts(vocab_size).reshape(-1), targets(vocab_size).reshape(64, 64), strict=True)
    ):
        mixed = (place + 1) * 0x9E3779B97F4A7C15 % 2**64  # in Python's integers
        assert token == (mixed ^ mixed >> 32) % vocab_size
        assert list(ids) == [(64 * j + place) * max(vocab_size, 4096) // 4096 % vocab_size for j in range(64)]


def test_rows_are_four_prompts_that_do_not_see_each_other():
    rows = reference_rows(997)
    (row,) = rows.rows
    assert len(row.tokens_S) == len(row.ends_S) == len(row.positions_S) == 64
    assert (row.num_blocks, row.block_length, row.num_real_tokens) == (4, 16, 64)
    assert row.positions_S.tolist() == list(range(16)) * 4
    assert row.ends_S.tolist() == [end for end in (16, 32, 48, 64) for _ in range(16)]
    assert sorted(row.pair_id_P) == list(range(rows.num_pairs))
    assert np.array_equal(row.tokens_S.reshape(4, 16), prompts(997))


class _Scorer:
    """Says of every pair: 1,000 x its position in the row + its target."""

    def score(self, rows):
        (row,) = rows.rows
        log_probs = np.empty(rows.num_pairs)
        log_probs[row.pair_id_P] = -(1000.0 * row.wanted_W[row.pair_wanted_P] + row.pair_target_P)
        return TokenLogProbs(log_probs, np.zeros(rows.num_pairs, bool))


def test_the_record_has_each_answer_in_its_place_and_survives_json():
    reference = take_reference(_Scorer(), vocab_size=500, compute="bf16")
    position = np.arange(64).reshape(4, 16, 1)
    assert np.array_equal(reference.log_prob_BST, -(1000.0 * position + targets(500)))
    assert Reference.from_json(reference.to_json()) == reference


def _values(**changes):
    good = {"version": VERSION, "compute": "fp32", "log_probs": base64.b64encode(bytes(4 * 4096)).decode()}
    return good | changes


@pytest.mark.parametrize(
    "values",
    [
        {},
        _values(extra=1),
        _values(version=0),
        _values(version=True),
        _values(version="1"),
        _values(compute="fp8"),
        _values(compute=["fp32"]),
        _values(log_probs=[1.0]),
        _values(log_probs="not base64!"),
        _values(log_probs="ü"),
        _values(log_probs="AAAA"),
    ],
)
def test_what_is_no_record_is_a_value_error(values):
    with pytest.raises(ValueError):
        Reference.from_json(values)


def test_a_record_of_a_later_version_can_be_read_though_not_compared():
    assert Reference.from_json(_values(version=VERSION + 1, log_probs="AAAA")).version == VERSION + 1
    assert all(Reference.from_json(_values(compute=compute)).compute == compute for compute in COMPUTES)
