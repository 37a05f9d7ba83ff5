"""The order of samples against plain loops over small cases, and far out against itself."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pretrain.data.chunked import ChunkedOrder
from pretrain.data.mixture import Mixture
from pretrain.data.order import MixtureOrder, Order, SampleOrder, SequentialOrder, Shares
from pretrain.data.permutation import permutation_key, permute
from pretrain.errors import ConfigError, DataError
from pretrain.skips import Skips

WEIGHTS = {"web": 5, "code": 2, "books": 1, "held": 0}
TOKENS = {"web": 641, "code": 10_000, "books": 65, "held": 0}
SEQUENCE = 64
# Tokens of Amber's sources, such that they have its numbers of samples: LLM360/amber-data-prep deals 1,706,976 a chunk.
AMBER_CHUNK, AMBER_CHUNKS, AMBER_BATCH = 1_706_976, 360, 2240


def make_mixture(**changes: object) -> MixtureOrder:
    weights = changes.pop("weights", WEIGHTS)
    shares = changes.pop("shares", [Shares(0, {name: Fraction(w) for name, w in weights.items()})])
    options: dict = {"seed": 3, "num_tokens": TOKENS, "sequence_length": SEQUENCE}
    return MixtureOrder(shares, **{**options, **changes})


def make_chunked(num_windows: dict[str, int], **changes: object) -> ChunkedOrder:
    options: dict = {"num_chunks": 4, "seed": 1, "sequence_length": SEQUENCE, "global_batch_size": 8}
    return ChunkedOrder.from_streams({n: w * SEQUENCE + 1 for n, w in num_windows.items()}, **{**options, **changes})


def everything(order: Order, count: int) -> list[tuple[str, int, int, int]]:
    found = order.locate(0, count)
    return [
        (order.sources[s], e, w, p)
        for s, e, w, p in zip(
            found.source.tolist(), found.epoch.tolist(), found.window.tolist(), found.start.tolist(), strict=True
        )
    ]


def test_a_mixture_takes_each_source_in_the_permutation_of_its_epoch() -> None:
    order = make_mixture()
    drawn = dict.fromkeys(order.sources, 0)
    source, _ = Mixture({name: Fraction(w) for name, w in WEIGHTS.items()}).draws(0, 3000)
    windows = dict(zip(order.sources, order.num_windows, strict=True))
    for (name, epoch, window, start), s in zip(everything(order, 3000), source.tolist(), strict=True):
        assert name == order.sources[s]
        assert (epoch, rank := drawn[name] % windows[name]) == divmod(drawn[name], windows[name])
        assert window == permute(permutation_key(3, name, epoch), windows[name], rank)
        assert start == window * SEQUENCE
        drawn[name] += 1
    assert order.drawn_before(3000) == drawn


def test_every_epoch_holds_every_window_once_and_in_its_own_order() -> None:
    order = make_mixture()
    found = order.locate(0, 40_000)
    for s, num_windows in enumerate(order.num_windows):
        windows, epochs = found.window[found.source == s], found.epoch[found.source == s]
        assert np.array_equal(epochs, np.arange(len(windows)) // num_windows)
        first, second = (windows[epochs == e] for e in (0, 1))
        assert np.array_equal(np.sort(first), np.arange(num_windows))
        assert np.array_equal(np.sort(second), np.arange(num_windows))
        assert num_windows == 1 or not np.array_equal(first, second)


def test_windows_cover_all_but_a_last_fraction_of_the_tokens() -> None:
    order = make_mixture()
    assert dict(zip(order.sources, order.num_windows, strict=True)) == {"web": 10, "code": 156, "books": 1}


@pytest.mark.parametrize(
    "make",
    [
        make_mixture,
        lambda: SequentialOrder({n: t for n, t in TOKENS.items() if t}, sequence_length=SEQUENCE),
        lambda: make_chunked({"web": 100, "code": 41, "books": 8}),
    ],
    ids=["mixture", "sequential", "chunked"],
)
def test_samples_are_found_alone_as_they_are_in_bulk(make: object) -> None:
    bulk = everything(make(), 3000)
    other = make()
    for i in (2999, 0, 1234, 77):
        alone = other.locate(i, 1)
        name, epoch, window, start = bulk[i]
        assert (other.sources[alone.source[0]], alone.epoch[0], alone.window[0], alone.start[0]) == (
            name,
            epoch,
            window,
            start,
        )


def test_the_seed_changes_windows_and_not_the_mixture() -> None:
    one, two = make_mixture().locate(0, 2000), make_mixture(seed=4).locate(0, 2000)
    assert np.array_equal(one.source, two.source)
    assert not np.array_equal(one.window, two.window)


def test_the_listing_of_sources_does_not_change_a_mixture() -> None:
    assert everything(make_mixture(), 2000) == everything(make_mixture(weights=dict(reversed(WEIGHTS.items()))), 2000)


def test_the_order_is_the_one_that_was_published() -> None:
    # Pinned: a change here changes every run's data and breaks the resuming of runs under way.
    found = make_mixture().locate(70_000, 8)
    assert [make_mixture().sources[s] for s in found.source] == EXPECTED_SOURCES
    assert found.window.tolist() == EXPECTED_WINDOWS


EXPECTED_SOURCES = ["web", "code", "web", "web", "web", "books", "code", "web"]
EXPECTED_WINDOWS = [4, 88, 7, 6, 3, 0, 32, 1]


def test_a_run_of_a_billion_samples_is_opened_at_its_end() -> None:
    order = make_mixture(num_tokens={**TOKENS, "web": 10**12, "code": 10**12, "books": 10**12})
    assert len(order.locate(10**9, 4).window) == 4
    assert sum(order.drawn_before(10**9).values()) == 10**9


def test_a_source_shorter_than_one_window_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.sources\.books has 64 training tokens.*= 65"):
        make_mixture(num_tokens={**TOKENS, "books": 64})


def test_when_shares_change_every_source_goes_on_in_its_own_epoch() -> None:
    before = [Shares(0, {name: Fraction(w) for name, w in WEIGHTS.items()})]
    change = 1001
    drawn = make_mixture(shares=before).drawn_before(change)
    after = [*before, Shares(change, {"web": Fraction(1), "code": Fraction(9), "new": Fraction(4)}, drawn)]
    order = make_mixture(shares=after, num_tokens={**TOKENS, "new": 641})
    rows = everything(order, 6000)
    assert rows[:change] == everything(make_mixture(shares=before), change)
    counts = np.array([sum(name == n for name, *_ in rows[change:]) for n in ("web", "code", "new", "books")])
    assert np.abs(counts - (6000 - change) * np.array([1, 9, 4, 0]) / 14).max() < 1
    for name, windows in zip(order.sources, order.num_windows, strict=True):
        seen = [(epoch, window) for n, epoch, window, _ in rows if n == name]
        assert len(set(seen)) == len(seen), f"{name} repeats a window within an epoch"
        assert [epoch for epoch, _ in seen] == [k // windows for k in range(len(seen))]
    assert order.drawn_before(6000) == {n: sum(name == n for name, *_ in rows) for n in order.sources}


def test_sequential_is_the_text_as_it_comes_over_and_over() -> None:
    order = SequentialOrder({"b": 3 * SEQUENCE + 1, "a": 2 * SEQUENCE + 9}, sequence_length=SEQUENCE)
    once = [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1)]
    assert everything(order, 12) == [
        (name, i // 5, window, window * SEQUENCE) for i in range(12) for name, window in [once[i % 5]]
    ]


def test_chunks_deal_sample_i_of_every_source_to_chunk_i_mod_their_number() -> None:
    order = make_chunked({"web": 103, "code": 41, "books": 9})
    assert order.rows.tolist() == [[2, 10, 25]] * 4  # floor(windows / 4) of books, code, web
    assert order.chunk_steps.tolist() == [4] * 4 and order.dropped.tolist() == [5] * 4
    rows = everything(order, 2 * 4 * 32)
    for e in range(2):
        for c in range(4):
            chunk = rows[(e * 4 + c) * 32 :][:32]
            assert len(set(chunk)) == 32
            assert all(epoch == e and window % 4 == c for _, epoch, window, _ in chunk)
            assert all(window // 4 < {"books": 2, "code": 10, "web": 25}[name] for name, _, window, _ in chunk)
    assert rows[:32] != rows[128:160], "another epoch is shuffled anew"
    assert order.chunk_ends(20) == [4, 8, 12, 16, 20]


def test_chunks_are_shuffled_such_that_every_sample_is_dropped_alike() -> None:
    trained = np.zeros(37, dtype=int)
    for seed in range(400):
        order = make_chunked({"web": 100, "code": 40, "books": 8}, seed=seed, num_chunks=4)
        found = order.locate(0, 32)
        np.add.at(trained, np.array([0, 2, 12])[found.source] + found.window // 4, 1)
    # 32 of 37 are trained on each time; five binomial standard deviations, over fixed seeds.
    share, spread = 32 / 37, 5 * np.sqrt(32 / 37 * 5 / 37 / 400)
    assert np.abs(trained / 400 - share).max() < spread


def test_ambers_chunks_have_its_published_arithmetic() -> None:
    order = ChunkedOrder.from_rows(
        {"all": [AMBER_CHUNK] * AMBER_CHUNKS}, seed=0, sequence_length=2048, global_batch_size=AMBER_BATCH
    )
    assert set(order.chunk_steps.tolist()) == {762} and set(order.dropped.tolist()) == {96}
    ends = order.chunk_ends(274_320)
    assert ends == [762 * (k + 1) for k in range(AMBER_CHUNKS)] and ends[-1] == 274_320
    # The hub's name of a checkpoint is its chunk: ckpt_k ends chunk k and starts reading chunk k + 1.
    for k in (0, 200, 358):
        last, first = order.locate((k + 1) * 762 * AMBER_BATCH - 1, 2).window // AMBER_CHUNK
        assert (last, first) == (k, k + 1)


def test_ambers_sources_dealt_from_streams_have_its_published_arithmetic() -> None:
    # Shares of LLM360/AmberDatasets in billions of tokens; the largest takes what rounding leaves.
    billions = {"arxiv": 30.0, "book": 28.86, "c4": 197.67, "starcoder": 291.92, "stackexchange": 21.75, "wiki": 23.9}
    rows = {name: int(b * 1e9 / 2049 / AMBER_CHUNKS) for name, b in billions.items()}
    rows["refinedweb"] = AMBER_CHUNK - sum(rows.values())
    windows = {name: n * AMBER_CHUNKS + i % AMBER_CHUNKS for i, (name, n) in enumerate(rows.items())}
    order = make_chunked(windows, num_chunks=AMBER_CHUNKS, sequence_length=SEQUENCE, global_batch_size=AMBER_BATCH)
    assert set(order.rows.sum(axis=1).tolist()) == {AMBER_CHUNK}
    assert set(order.chunk_steps.tolist()) == {762} and set(order.dropped.tolist()) == {96}
    found = order.locate(137 * 762 * AMBER_BATCH, 10_000)
    assert set((found.window % AMBER_CHUNKS).tolist()) == {137}


def test_rows_that_came_in_chunks_lie_one_after_the_other() -> None:
    order = ChunkedOrder.from_rows(
        {"c4": [6, 3], "arxiv": [4, 7], "none": [0, 0]}, seed=5, sequence_length=SEQUENCE, global_batch_size=5
    )
    assert order.sources == ("arxiv", "c4") and order.chunk_steps.tolist() == [2, 2]
    rows = everything(order, 20)
    assert sorted(rows[:10]) == [("arxiv", 0, w, w * 65) for w in range(4)] + [("c4", 0, w, w * 65) for w in range(6)]
    assert sorted(rows[10:]) == [("arxiv", 0, w, w * 65) for w in range(4, 11)] + [
        ("c4", 0, w, w * 65) for w in range(6, 9)
    ]


def test_chunks_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.sources\.books has 3 samples.*data\.num_chunks=4"):
        make_chunked({"web": 100, "books": 3})
    with pytest.raises(ConfigError, match=r"chunk 0 has 25 samples.*train\.global_batch_size=26"):
        make_chunked({"web": 100}, global_batch_size=26)


def test_skipped_ranges_are_left_out_and_nothing_else_moves() -> None:
    order, skips = make_mixture(), Skips.parse(["0:3", "10:12", "12:13", "500:1500"])
    whole = everything(order, 3000)
    kept = [row for i, row in enumerate(whole) if not (i < 3 or 10 <= i < 13 or 500 <= i < 1500)]
    assert everything(SampleOrder(order, skips), len(kept)) == kept
    for first in (0, 6, 7, 480, 484, 485, 1000):
        found = SampleOrder(order, skips).locate(first, 10)
        assert found.window.tolist() == [window for _, _, window, _ in kept[first : first + 10]]
    assert len(SampleOrder(order, skips).locate(5, 0).window) == 0
