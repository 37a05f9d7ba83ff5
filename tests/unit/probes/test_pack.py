import random

import numpy as np
import pytest

from pretrain.engine.base import PackedRow
from probes.pack import Packing, pack
from probes.request import Request


def request(context: list[int], continuation: list[int]) -> Request:
    return Request(0, 0, 0, tuple(context), tuple(continuation), 1, 1, is_choice=True, is_gold=True)


def visible(row: PackedRow, query: int) -> list[int]:
    """Keys a query sees, by the contract's sentence alone."""
    return [key for key in range(query + 1) if query < row.ends_S[key]]


def check(requests: list[Request], packing: Packing, max_length: int, multiple: int) -> None:
    """What every pair's position sees, in order, is its request's input up to there; every id occurs once."""
    pairs: dict[int, tuple[tuple[int, ...], int]] = {}
    for row in packing.rows.rows:
        assert len(row.tokens_S) % multiple == 0
        assert len(row.tokens_S) >= row.prefix + row.num_blocks * row.block_length
        assert np.all(np.diff(row.wanted_W) > 0)
        for place, target, pair in zip(row.pair_wanted_P, row.pair_target_P, row.pair_id_P, strict=True):
            query = int(row.wanted_W[place])
            keys = visible(row, query)
            assert [row.positions_S[key] for key in keys] == list(range(len(keys)))
            block = (query - row.prefix) // row.block_length if row.block_length else 0
            own = range(row.prefix + block * row.block_length, row.prefix + (block + 1) * row.block_length)
            assert all(key < row.prefix or key in own for key in keys)
            assert int(pair) not in pairs
            pairs[int(pair)] = tuple(int(row.tokens_S[key]) for key in keys), int(target)
    assert sorted(pairs) == list(range(packing.rows.num_pairs))
    for number, asked in enumerate(requests):
        tokens = (asked.context + asked.continuation)[-(max_length + 1) :][:-1]
        first = len(tokens) - len(asked.continuation)
        span = packing.span_pairs[packing.span_offsets_R1[number] : packing.span_offsets_R1[number + 1]]
        assert len(span) == len(asked.continuation)
        for j, pair in enumerate(span):
            assert pairs[int(pair)] == (tokens[: first + j + 1], asked.continuation[j])


def test_every_pair_sees_exactly_its_prompt_in_random_plans():
    rnd = random.Random(0)
    for _ in range(200):
        vocabulary = rnd.choice([2, 3, 50])
        shots = [rnd.randrange(vocabulary) for _ in range(rnd.choice([0, 0, 30, 100]))]
        requests = []
        for _ in range(rnd.randrange(1, 25)):
            context = shots + [rnd.randrange(vocabulary) for _ in range(rnd.randrange(1, 12))]
            for _ in range(rnd.randrange(1, 4)):
                length = rnd.choice([1, 1, 2, 6])
                requests.append(request(context, [rnd.randrange(vocabulary) for _ in range(length)]))
        max_length, multiple = rnd.choice([40, 1000]), rnd.choice([1, 8])
        packing = pack(
            requests,
            max_length=max_length,
            tokens_per_row=rnd.choice([64, 256, 1000]),
            multiple=multiple,
            block_length=rnd.choice([None, 16, 32, 64]),
            min_prefix=rnd.choice([16, 64]),
        )
        check(requests, packing, max_length, multiple)


def test_shared_shots_become_a_prefix_that_is_computed_once_a_row():
    shots = list(range(3, 203))
    requests = [request([*shots, 300 + item], [900 + choice, 7]) for item in range(300) for choice in range(4)]
    packing = pack(requests, max_length=1000, tokens_per_row=4096)
    check(requests, packing, 1000, 16)
    assert all(row.prefix == len(shots) for row in packing.rows.rows)
    assert packing.stats["tokens"] < packing.stats["naive_tokens"] / 20


def test_equal_requests_share_their_pairs():
    packing = pack([request([1, 2], [3]), request([1, 2], [3])], max_length=8)
    assert packing.rows.num_pairs == 1
    assert packing.span_pairs.tolist() == [0, 0]


def test_prompts_that_each_extend_the_last_by_a_token_do_not_exhaust_the_stack():
    tokens = list(range(2000))
    requests = [request(tokens[:n], [tokens[n], 9999]) for n in range(1, 1999)]
    packing = pack(requests, max_length=4000, tokens_per_row=8192)
    assert packing.stats["trie_tokens"] == 1999
    row = packing.rows.rows[0]
    assert len(visible(row, int(row.wanted_W[-1]))) == row.positions_S[row.wanted_W[-1]] + 1


def test_a_context_too_long_is_cut_from_the_left_and_counted():
    packing = pack([request(list(range(100)), [7, 8])], max_length=10)
    row = packing.rows.rows[0]
    assert row.tokens_S[: row.num_real_tokens].tolist() == [*range(91, 100), 7]
    assert row.positions_S[:10].tolist() == list(range(10))
    assert packing.stats["cut_requests"] == 1


def test_a_continuation_as_long_as_the_context_window_fits():
    packing = pack([request([5], list(range(10)))], max_length=10)
    check([request([5], list(range(10)))], packing, 10, 16)
    assert packing.stats["cut_requests"] == 0


def test_packing_twice_gives_the_same_digest_and_another_order_another():
    requests = [request([1, 2, n], [n + 1]) for n in range(20)]
    assert pack(requests, max_length=9).rows.digest == pack(requests, max_length=9).rows.digest
    assert pack(requests, max_length=9).rows.digest != pack(requests[:-1], max_length=9).rows.digest


@pytest.mark.parametrize("multiple", [1, 16, 128])
def test_rows_keep_to_the_budget_and_the_multiple(multiple: int):
    rnd = random.Random(3)
    requests = [request([rnd.randrange(99) for _ in range(rnd.randint(5, 90))], [1, 2]) for _ in range(200)]
    packing = pack(requests, max_length=128, tokens_per_row=1024, multiple=multiple)
    check(requests, packing, 128, multiple)
    assert max(len(row.tokens_S) for row in packing.rows.rows) <= 1024


def test_padding_sees_and_is_seen_by_nothing():
    packing = pack([request([1, 2, 3], [4])], max_length=9)
    row = packing.rows.rows[0]
    assert row.num_real_tokens == 3
    assert not row.ends_S[3:].any()
    assert row.tokens_S.dtype == row.positions_S.dtype == row.ends_S.dtype == np.int32
