"""Streams of shards against Megatron's reader, shards that are opened late, and torn files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from pretrain.data.local_shard import LocalFile, OpenFiles
from pretrain.data.tokens import ShardFile, TokenStream, read_ends, read_windows
from pretrain.errors import DataError


def write_shard(prefix: Path, documents: list[list[list[int]]], dtype: type) -> Path:
    """Documents of several sequences each, by Megatron's builder."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        joined = [token for sequence in sequences for token in sequence]
        builder.add_document(torch.tensor(joined), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture
def prefixes(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)

    def documents(count: int, largest: int) -> list[list[list[int]]]:
        lengths = rng.integers(1, 20, size=(count, 2)).tolist()
        return [[rng.integers(0, largest, size=n).tolist() for n in pair] for pair in lengths]

    return [
        write_shard(tmp_path / "a.train", documents(30, 65_000), np.uint16),
        write_shard(tmp_path / "b.train", documents(1, 100_000), np.int32),
        write_shard(tmp_path / "c.train", documents(17, 100_000), np.int32),
    ]


def test_shards_are_one_stream_of_the_tokens_megatron_reads(prefixes: list[Path]) -> None:
    datasets = [IndexedDataset(str(prefix)) for prefix in prefixes]  # held: their arrays die with them
    expected = np.concatenate([sequence for dataset in datasets for sequence in dataset[:]])
    stream = TokenStream(prefixes)
    assert stream.num_tokens == len(expected)
    assert stream.num_documents == 48
    assert np.array_equal(stream.window(0, stream.num_tokens), expected)
    for start in range(0, stream.num_tokens, 13):
        for length in (0, 1, 50, 700):
            if start + length <= stream.num_tokens:
                window = stream.window(start, length)
                assert window.dtype == np.int32
                assert np.array_equal(window, expected[start : start + length])


def test_every_position_is_in_the_document_megatron_says(prefixes: list[Path]) -> None:
    stream = TokenStream(prefixes)
    expected = []
    begin = 0
    for prefix in prefixes:
        dataset = IndexedDataset(str(prefix))
        bounds = np.concatenate(([0], np.cumsum(dataset.sequence_lengths)))[dataset.document_indices]
        for index in range(len(bounds) - 1):
            expected += [(prefix, index, begin + bounds[index], begin + bounds[index + 1])] * int(
                np.diff(bounds)[index]
            )
        begin += int(bounds[-1])
    found = [stream.document(position) for position in range(stream.num_tokens)]
    assert [(d.shard, d.index, d.start, d.stop) for d in found] == expected
    starts = sorted({d.start for d in found})
    assert stream.document_starts(0, stream.num_tokens).tolist() == starts
    assert stream.document_starts(100, 200).tolist() == [s for s in starts if 100 <= s < 200]


def test_no_shards_are_an_empty_stream_and_nothing_outside_is_read(prefixes: list[Path]) -> None:
    empty = TokenStream([])
    assert empty.num_tokens == empty.num_documents == len(empty.window(0, 0)) == 0
    stream = TokenStream(prefixes)
    for start, length in ((-1, 2), (stream.num_tokens - 1, 2), (0, -1)):
        with pytest.raises(IndexError):
            stream.window(start, length)
    for ask in (stream.document, stream.place):
        with pytest.raises(IndexError):
            ask(stream.num_tokens)


def test_a_torn_file_is_named_with_its_offset(prefixes: list[Path]) -> None:
    for ending in (".bin", ".idx"):
        path = Path(f"{prefixes[0]}{ending}")
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        with pytest.raises(DataError, match=rf"a\.train\{ending} is torn: it ends at byte {len(whole) - 3}"):
            TokenStream(prefixes)
        path.write_bytes(whole)
    TokenStream(prefixes)


def test_a_file_that_is_no_index_or_is_missing_is_named(prefixes: list[Path]) -> None:
    index = Path(f"{prefixes[1]}.idx")
    whole = index.read_bytes()
    index.write_bytes(b"PK" + whole[2:])
    with pytest.raises(DataError, match=r"b\.train\.idx is not an index"):
        TokenStream(prefixes)
    index.write_bytes(whole[:17] + b"\x07" + whole[18:])
    with pytest.raises(DataError, match=r"b\.train\.idx, offset 9: version 1 with token type 7"):
        TokenStream(prefixes)
    index.unlink()
    with pytest.raises(DataError, match=r"b\.train\.idx cannot be read"):
        TokenStream(prefixes)


def described(prefixes: list[Path]) -> list[ShardFile]:
    """What a manifest says of shards, counted by Megatron's reader."""
    found = []
    for prefix in prefixes:
        dataset = IndexedDataset(str(prefix))
        dtype = np.dtype(dataset.index.dtype).name
        documents = len(dataset.document_indices) - 1
        found.append(ShardFile(str(prefix), dtype, documents, int(dataset.sequence_lengths.sum())))
    return found


def test_a_shard_a_manifest_describes_is_opened_when_it_is_first_used(prefixes: list[Path]) -> None:
    shards = described(prefixes)
    expected = TokenStream(prefixes)
    tokens = expected.window(0, expected.num_tokens)
    first, last = shards[0].tokens, shards[2].tokens
    for ending in (".bin", ".idx"):
        Path(f"{prefixes[1]}{ending}").unlink()
    stream = TokenStream(shards)
    assert (stream.num_tokens, stream.num_documents) == (len(tokens), 48)
    assert np.array_equal(stream.window(0, first), tokens[:first])
    assert np.array_equal(stream.window(len(tokens) - last, last), tokens[-last:])
    with pytest.raises(DataError, match=r"b\.train\.idx cannot be read .*No such file"):
        stream.window(first - 1, 2)


@pytest.mark.parametrize(("field", "value"), [("dtype", "int32"), ("documents", 29), ("tokens", 7)])
def test_a_shard_that_is_not_the_one_of_the_manifest_is_refused(
    field: str, value: object, prefixes: list[Path]
) -> None:
    (shard, *_) = described(prefixes)
    fields = {name: getattr(shard, name) for name in ShardFile.__slots__} | {field: value}
    stream = TokenStream([ShardFile(**fields)])
    with pytest.raises(DataError, match=rf"a\.train\.idx holds 30 documents of {shard.tokens} tokens \(uint16\); the"):
        stream.window(0, 1)


def test_rows_of_a_batch_come_from_any_stream_and_any_number_of_shards(prefixes: list[Path]) -> None:
    streams = [TokenStream(prefixes), TokenStream(prefixes[1:]), TokenStream([*prefixes[:2], *prefixes])]
    whole = [stream.window(0, stream.num_tokens) for stream in streams]
    rng = np.random.default_rng(1)
    source = rng.integers(0, 3, size=40)
    for length in (1, 10, streams[1].num_tokens):
        start = np.array([rng.integers(0, streams[s].num_tokens - length + 1) for s in source])
        out = np.full((40, length), -1, dtype=np.int32)
        read_windows(streams, source, start, out)
        assert np.array_equal(out, np.stack([whole[s][a : a + length] for s, a in zip(source, start, strict=True)]))


def test_every_token_is_stored_where_its_place_says(prefixes: list[Path]) -> None:
    stream = TokenStream(prefixes)
    tokens = stream.window(0, stream.num_tokens)
    for position in range(0, stream.num_tokens, 7):
        place = stream.place(position)
        dtype = np.uint16 if "a.train" in place.path else np.int32
        assert np.fromfile(place.path, dtype=dtype, count=1, offset=place.offset)[0] == tokens[position]


@pytest.mark.parametrize("sequences", [1, 3])
def test_documents_are_found_among_many_of_very_different_lengths(sequences: int, tmp_path: Path) -> None:
    """A search looks around a guess, which lengths that grow put far off."""
    rng = np.random.default_rng(2)
    lengths = np.sort(rng.integers(1, 60, size=6000))
    lengths[:2000] = 1
    documents = [
        [[7] * part for part in np.diff(np.linspace(0, n, sequences + 1).astype(int)) if part] for n in lengths
    ]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    stream = TokenStream([write_shard(tmp_path / "many", documents, np.uint16)])
    assert np.array_equal(stream.document_starts(0, stream.num_tokens), bounds[:-1])
    for start in rng.integers(0, stream.num_tokens - 500, size=50):
        expected = bounds[:-1][(bounds[:-1] >= start) & (bounds[:-1] < start + 500)]
        assert np.array_equal(stream.document_starts(start, start + 500), expected)
        found = stream.document(start)
        assert found.index == np.searchsorted(bounds, start, side="right") - 1
        assert (found.start, found.stop) == (bounds[found.index], bounds[found.index + 1])


def test_ends_are_those_of_each_tokens_document_within_its_window(prefixes: list[Path]) -> None:
    stream = TokenStream(prefixes)
    starts = np.arange(0, stream.num_tokens - 100, 17)
    out = np.full((len(starts), 100), -1, dtype=np.int32)
    read_ends([stream], np.zeros(len(starts), dtype=np.int64), starts, out)
    for row, start in zip(out, starts, strict=True):
        assert row.tolist() == [min(stream.document(start + i).stop - start, 100) for i in range(100)]


def test_no_more_files_are_open_than_allowed(prefixes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files = OpenFiles(2)

    class FewOpen(LocalFile):
        def __init__(self, path: str) -> None:
            super().__init__(path, files)

    monkeypatch.setattr("pretrain.data.tokens.LocalFile", FewOpen)
    before = len(os.listdir("/proc/self/fd"))
    stream = TokenStream(described(prefixes * 20))
    tokens = stream.window(0, stream.num_tokens)
    assert np.array_equal(tokens, np.tile(TokenStream(prefixes).window(0, stream.num_tokens // 20), 20))
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    del stream
    assert len(os.listdir("/proc/self/fd")) <= before
