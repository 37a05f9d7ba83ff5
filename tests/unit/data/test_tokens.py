"""Memory-mapped streams against Megatron's reader, and torn files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from pretrain.data.tokens import TokenStream
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
    with pytest.raises(IndexError):
        stream.document(stream.num_tokens)


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
