"""Batches against a plain loop over the sample order, for every layout, and the reading thread."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from pretrain.batch_size import BatchSizes
from pretrain.config.run import RunConfig
from pretrain.data.loader import BatchLoader, sequence_weights
from pretrain.data.order import SampleOrder, SequentialOrder
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.data.run_order import sample_order
from pretrain.data.tokens import TokenStream
from pretrain.engine.base import Batch
from pretrain.errors import ConfigError, DataError
from pretrain.units import Duration


@pytest.fixture
def prepared(config: RunConfig) -> PreparedData:
    return ensure_prepared(config, run_root=Path(config.run.dir))


RAMP = BatchSizes.ramp(
    [(Duration(3, "steps"), 2), (Duration(14 * 32, "tokens"), 4)], global_batch_size=8, sequence_length=32
)  # first samples 0 2 4 | 6 10 | 14 22 30 …


def make_loader(
    config: RunConfig, prepared: PreparedData, *, batch_sizes: BatchSizes | None = None, **changes: Any
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


def global_batch(batches: list[Batch], *, dp_size: int) -> np.ndarray:
    """[batch, S + 1] in the order of samples, from what each data-parallel rank was given."""
    assert len(batches) == dp_size
    return np.stack([batch.tokens_MBT for batch in batches], axis=1).reshape(-1, 33)


@pytest.mark.parametrize(("dp", "micro"), list(itertools.product((1, 2, 4), (1, 2, 4))))
def test_every_layout_restarted_at_every_step_reads_the_same_global_batches(
    dp: int, micro: int, config: RunConfig, prepared: PreparedData
) -> None:
    """World sizes, micro-batches and restarts, on loaders and threads that know nothing of each other."""
    sizes, steps = BatchSizes.constant(16, sequence_length=32), 6
    expected = expected_samples(config, prepared, 0, 16 * steps).reshape(steps, 16, 33)
    for restart in range(steps):
        ranks = [
            make_loader(config, prepared, batch_sizes=sizes, micro_batch_size=micro, dp_size=dp, dp_rank=rank)
            for rank in range(dp)
        ]
        iterators = [loader.iterate(16 * restart) for loader in ranks]
        for step in range(restart, steps):
            found = global_batch([next(iterator) for iterator in iterators], dp_size=dp)
            assert np.array_equal(found, expected[step]), (restart, step)
        for iterator in iterators:
            iterator.close()


def test_an_id_outside_the_vocabulary_is_named_with_file_byte_and_sample(
    config: RunConfig, prepared: PreparedData
) -> None:
    order = sample_order(config, prepared)
    found = order.locate(16, 8)
    stream = prepared.sources[order.sources[found.source[5]]].train
    place = stream.place(int(found.start[5]) + 20)
    vocab_size = prepared.tokenizer.vocab_size
    make_loader(config, prepared, vocab_size=vocab_size).batch(16)
    with Path(place.path).open("r+b") as file:
        file.seek(place.offset)
        file.write(np.uint16(vocab_size + 3).tobytes())
    again = {name: TokenStream(_prefixes(source.train)) for name, source in prepared.sources.items()}
    options: dict[str, Any] = {"batch_sizes": BatchSizes.constant(8, sequence_length=32), "micro_batch_size": 2}
    with pytest.raises(DataError) as caught:
        BatchLoader(order, again, vocab_size=vocab_size, **options).batch(16)
    assert str(caught.value).startswith(
        f"{place.path}, byte {place.offset}: token id {vocab_size + 3} is outside the vocabulary of {vocab_size} "
        f"(0 to {vocab_size - 1}); it is token 20 of sample 21, source {order.sources[found.source[5]]}"
    )
    BatchLoader(order, again, **options).batch(16)  # not asked to look


def _prefixes(stream: TokenStream) -> list[str]:
    return list(
        dict.fromkeys(stream.place(position).path.removesuffix(".bin") for position in range(stream.num_tokens))
    )


def test_a_negative_id_is_outside_the_vocabulary_too(tmp_path: Path) -> None:
    ids = np.arange(100, dtype=np.int32)
    ids[40] = -2
    builder = IndexedDatasetBuilder(f"{tmp_path / 'ids'}.bin", dtype=np.int32)
    builder.add_document(torch.from_numpy(ids), [100])
    builder.finalize(f"{tmp_path / 'ids'}.idx")
    stream = TokenStream([tmp_path / "ids"])
    order = SampleOrder(SequentialOrder({"one": 100}, sequence_length=32))
    options: dict[str, Any] = {"batch_sizes": BatchSizes.constant(2, sequence_length=32), "micro_batch_size": 1}
    with pytest.raises(DataError, match=r"ids\.bin, byte 160: token id -2 is outside .* token 8 of sample 1"):
        BatchLoader(order, {"one": stream}, vocab_size=200, **options).batch(0)


def test_ends_are_those_of_the_documents_of_the_text(config: RunConfig, prepared: PreparedData) -> None:
    order = sample_order(config, prepared)
    batch = make_loader(config, prepared, document_mask=True).batch(24)
    assert batch.ends_MBS is not None and batch.ends_MBS.dtype == np.int32 and batch.ends_MBS.shape == (4, 2, 32)
    found = order.locate(24, 8)
    for i, row in enumerate(batch.ends_MBS.reshape(8, 32)):
        stream, start = prepared.sources[order.sources[found.source[i]]].train, int(found.start[i])
        assert row.tolist() == [min(stream.document(start + k).stop - start, 32) for k in range(32)]
    assert len(np.unique(batch.ends_MBS)) > 1
    assert make_loader(config, prepared).batch(24).ends_MBS is None


@pytest.mark.parametrize("read_ahead", [2, 5])
def test_as_many_batches_are_read_ahead_as_asked_and_waiting_is_measured(
    read_ahead: int, config: RunConfig, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(config, prepared)
    read, begun, go = loader.batch, [], threading.Semaphore(0)

    def read_when_told(first_sample: int) -> Batch:
        go.acquire()
        begun.append(first_sample)
        return read(first_sample)

    monkeypatch.setattr(loader, "batch", read_when_told)
    batches = loader.iterate(0, read_ahead=read_ahead)
    assert batches.waited_seconds == 0.0
    threading.Timer(0.05, go.release).start()
    assert next(batches).first_sample == 0
    assert batches.waited_seconds > 0.0
    for _ in range(20):
        go.release()
    while len(begun) < 1 + read_ahead:
        time.sleep(0.001)
    time.sleep(0.05)  # a thread that reads too far ahead would have done so by now
    assert len(begun) == 1 + read_ahead
    for _ in range(20):
        go.release()
    batches.close()


def test_sequence_weights_make_a_mean_of_means_and_leave_one_id_out():
    rng = np.random.default_rng(0)
    targets, losses = rng.integers(0, 4, (3, 2, 10)), rng.random((3, 2, 10))
    targets[0, 0] = 1  # nothing left: EasyLM divides by 1e-10 there, and has a loss of 0
    means = [
        sum(one for one, target in zip(*pair, strict=True) if target != 1)
        / max(1e-10, sum(target != 1 for target in pair[1]))
        for pair in zip(losses.reshape(6, 10), targets.reshape(6, 10), strict=True)
    ]
    weights = sequence_weights(targets, 1)
    assert weights.dtype == np.float32 and not weights[targets == 1].any()
    assert (weights * losses).mean() == pytest.approx(sum(means) / 6, rel=1e-6)
