"""Shards have the bytes of megatron-core's own builder, wherever writing was interrupted."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from pretrain.data import shard_writer
from pretrain.data.shard_writer import Position, ShardWriter, drop_lengths, token_dtype
from pretrain.errors import DataError


def make_documents(count: int, *, vocab_size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, rng.integers(0, 40), dtype=np.int32) for _ in range(count)]


def write_megatron(prefix: Path, documents: list[np.ndarray], *, vocab_size: int) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for ids in documents:
        builder.add_document(torch.from_numpy(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def files(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{ending}").read_bytes() for ending in (".bin", ".idx")]


@pytest.mark.parametrize("vocab_size", [700, 65_499, 65_500, 128_000])
def test_a_shard_has_the_bytes_of_megatrons_builder(
    vocab_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_BLOCK_DOCUMENTS", 64)
    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)
    for count in (1, 63, 64, 65, 500):
        documents = make_documents(count, vocab_size=vocab_size, seed=count)
        write_megatron(tmp_path / "theirs", documents, vocab_size=vocab_size)
        writer = ShardWriter(tmp_path / "ours", vocab_size=vocab_size)
        for ids in documents:
            writer.add(ids[:3], ids[3:])
        writer.close()
        drop_lengths(writer.prefix)
        assert files(tmp_path / "ours") == files(tmp_path / "theirs")
        assert (writer.documents, writer.tokens) == (count, sum(map(len, documents)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.bin", "ours.idx", "theirs.bin", "theirs.idx"]


def test_a_shard_of_empty_documents_has_the_bytes_of_megatrons_builder(tmp_path: Path) -> None:
    documents = [np.empty(0, dtype=np.int32)] * 3
    write_megatron(tmp_path / "theirs", documents, vocab_size=700)
    writer = ShardWriter(tmp_path / "ours", vocab_size=700)
    for ids in documents:
        writer.add(ids)
    writer.close()
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")


def test_a_shard_reopened_at_a_durable_position_ends_with_the_same_bytes(tmp_path: Path) -> None:
    documents = make_documents(300, vocab_size=70_000, seed=5)
    write_megatron(tmp_path / "theirs", documents, vocab_size=70_000)
    rng, position = random.Random(6), Position()
    for _ in range(12):
        writer = ShardWriter(tmp_path / "ours", vocab_size=70_000, position=position)
        durable = rng.randint(position.documents, min(300, position.documents + 40))
        for ids in documents[position.documents : durable]:
            writer.add(ids)
        position = writer.sync()
        for ids in make_documents(rng.randint(0, 9), vocab_size=70_000, seed=7):  # lost, and not to be seen again
            writer.add(ids)
        if rng.random() < 0.5:
            writer.close()
        writer.abandon()
    writer = ShardWriter(tmp_path / "ours", vocab_size=70_000, position=position)
    for ids in documents[position.documents :]:
        writer.add(ids)
    writer.close()
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")


def test_a_shard_without_documents_leaves_no_files_and_removes_older_ones(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", vocab_size=700)
    writer.add(np.arange(3, dtype=np.int32))
    writer.close()
    assert len(list(tmp_path.iterdir())) == 3
    writer = ShardWriter(tmp_path / "s", vocab_size=700)
    writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".bin", ".lengths"])
def test_a_shard_shorter_than_its_position_is_not_continued(ending: str, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", vocab_size=700)
    writer.add(np.arange(3, dtype=np.int32))
    position = writer.sync()
    writer.abandon()
    path = tmp_path / f"s{ending}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"s\{ending} ends at byte \d"):
        ShardWriter(tmp_path / "s", vocab_size=700, position=position)
