"""Batches against a plain loop over the sample order, for every layout, and the reading thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from pretrain.batch_size import BatchSizes
from pretrain.config.run import RunConfig
from pretrain.data.loader import BatchLoader
from pretrain.data.run_order import sample_order
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.errors import ConfigError
from pretrain.units import Duration


@pytest.fixture
def prepared(config: RunConfig) -> PreparedData:
    return ensure_prepared(config, run_root=Path(config.run.dir))


RAMP = BatchSizes.ramp(
    [(Duration(3, "steps"), 2), (Duration(14 * 32, "tokens"), 4)], global_batch_size=8, sequence_length=32
)  # first samples 0 2 4 | 6 10 | 14 22 30 …


def make_loader(
    config: RunConfig, prepared: PreparedData, *, batch_sizes: BatchSizes | None = None, **changes: int
) -> BatchLoader:
    options = {"micro_batch_size": 2, "dp_rank": 0, "dp_size": 1, **changes}
    options["batch_sizes"] = batch_sizes or BatchSizes.constant(8, sequence_length=32)
    streams = {name: source.train for name, source in prepared.sources.items()}
    return BatchLoader(sample_order(config, prepared), streams, **options)


def expected_samples(config: RunConfig, prepared: PreparedData, first: int, count: int) -> np.ndarray:
    order = sample_order(config, prepared)
    rows = []
    for i in range(first, first + count):
        found = order.locate(i, 1)
        stream = prepared.sources[order.sources[found.source[0]]].train
        tokens = stream.window(0, stream.num_tokens)
        start = int(found.window[0]) * 32
        rows.append(tokens[start : start + 33])
    return np.stack(rows)


@pytest.mark.parametrize(("micro", "dp"), [(1, 1), (2, 1), (8, 1), (1, 8), (2, 2), (4, 2), (1, 4)])
def test_ranks_and_microbatches_together_hold_each_sample_in_its_place(
    micro: int, dp: int, config: RunConfig, prepared: PreparedData
) -> None:
    expected = expected_samples(config, prepared, 40, 8)
    for rank in range(dp):
        batch = make_loader(config, prepared, micro_batch_size=micro, dp_size=dp, dp_rank=rank).batch(40)
        assert batch.tokens_MBT.shape == (8 // (micro * dp), micro, 33)
        assert batch.tokens_MBT.dtype == np.int32
        for m, rows in enumerate(batch.tokens_MBT):
            for b, row in enumerate(rows):
                assert np.array_equal(row, expected[m * micro * dp + rank * micro + b])


def test_source_tokens_are_those_of_the_global_batch_on_every_rank(config: RunConfig, prepared: PreparedData) -> None:
    batches = [make_loader(config, prepared, dp_size=4, dp_rank=rank).batch(16) for rank in range(4)]
    assert all(batch.source_tokens == {"code": 2 * 32, "prose": 6 * 32} for batch in batches)
    assert {(batch.first_sample, batch.num_samples) for batch in batches} == {(16, 8)}


def test_a_batch_larger_than_an_epoch_is_read_across_epochs(config: RunConfig, prepared: PreparedData) -> None:
    batch = make_loader(config, prepared, batch_sizes=BatchSizes.constant(4096, sequence_length=32)).batch(10**6)
    assert batch.tokens_MBT.shape == (2048, 2, 33)
    assert np.array_equal(batch.tokens_MBT[:4].reshape(8, 33), expected_samples(config, prepared, 10**6, 8))


def test_any_batch_can_be_asked_for_after_any_other(config: RunConfig, prepared: PreparedData) -> None:
    """Places are looked up for many samples at once: batches inside, across the end of and before what is known."""
    loader = make_loader(config, prepared)
    for first in (0, 8, 1016, 1020, 1024, 2040, 8, 5000, 4992, 0):
        got = loader.batch(first).tokens_MBT.reshape(8, 33)
        assert np.array_equal(got, expected_samples(config, prepared, first, 8)), first


def test_iterating_gives_the_batches_one_after_another_from_anywhere(config: RunConfig, prepared: PreparedData) -> None:
    loader = make_loader(config, prepared)
    with loader.iterate(24) as batches:
        for first in range(24, 24 + 8 * 10, 8):
            batch = next(batches)
            assert batch.first_sample == first
            assert np.array_equal(batch.tokens_MBT, loader.batch(first).tokens_MBT)


def test_a_ramp_cuts_the_same_samples_into_other_batches(config: RunConfig, prepared: PreparedData) -> None:
    expected = expected_samples(config, prepared, 0, 30)
    for dp in (1, 2):
        read = np.full_like(expected, -1)
        for rank in range(dp):
            loader = make_loader(config, prepared, batch_sizes=RAMP, micro_batch_size=1, dp_rank=rank, dp_size=dp)
            with loader.iterate(0) as batches:
                for first, size in ((0, 2), (2, 2), (4, 2), (6, 4), (10, 4), (14, 8), (22, 8)):
                    batch = next(batches)
                    assert (batch.first_sample, batch.num_samples) == (first, size)
                    assert batch.tokens_MBT.shape == (size // dp, 1, 33)
                    assert sum(batch.source_tokens.values()) == size * 32
                    read[first + rank : first + size : dp] = batch.tokens_MBT[:, 0]
        assert np.array_equal(read, expected)


def test_a_ramp_resumed_at_any_step_reads_the_same_batches(config: RunConfig, prepared: PreparedData) -> None:
    loader = make_loader(config, prepared, batch_sizes=RAMP)
    with loader.iterate(0) as batches:
        whole = [next(batches) for _ in range(9)]
    for step in range(9):
        with loader.iterate(RAMP.samples(step)) as batches:
            for batch in whole[step:]:
                again = next(batches)
                assert again.first_sample == batch.first_sample
                assert np.array_equal(again.tokens_MBT, batch.tokens_MBT)


def test_every_batch_of_a_ramp_must_divide(config: RunConfig, prepared: PreparedData) -> None:
    with pytest.raises(ConfigError) as caught:
        make_loader(config, prepared, batch_sizes=RAMP, micro_batch_size=8)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "train.global_batch_size=2", "train.global_batch_size=4",
    ]  # fmt: skip


def test_closing_ends_the_thread_and_the_iteration(config: RunConfig, prepared: PreparedData) -> None:
    batches = make_loader(config, prepared).iterate(0)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []
    assert not any(thread.name == "batch-reader" for thread in threading.enumerate())


def test_an_error_of_the_reading_thread_is_raised_by_next_and_stays(
    config: RunConfig, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(config, prepared)
    read = loader.batch

    def fail_at_16(first_sample: int):
        if first_sample == 16:
            raise OSError("disk is gone")
        return read(first_sample)

    monkeypatch.setattr(loader, "batch", fail_at_16)
    with loader.iterate(0) as batches:
        assert [next(batches).first_sample for _ in range(2)] == [0, 8]
        for _ in range(2):
            with pytest.raises(OSError, match="disk is gone"):
                next(batches)


def test_a_batch_that_does_not_divide_shows_the_arithmetic(config: RunConfig, prepared: PreparedData) -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size=8 .* 3 · 2 = 6"):
        make_loader(config, prepared, micro_batch_size=3, dp_size=2)
