"""Shards behind an fsspec address give the bytes that local ones give, and errors that name object and byte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from pretrain.data import remote_shard
from pretrain.data.tokens import ShardFile, TokenStream, read_ends, read_windows
from pretrain.errors import DataError


class SlowStore(AsyncFileSystem):
    """An asynchronous file system, as those of object stores are, over what is in memory; counts what it is asked."""

    protocol = "slowstore"
    at_once: list[int] = []
    _waiting = 0

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return fsspec.filesystem("memory").info(path)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        SlowStore._waiting += 1
        await asyncio.sleep(0.01)
        self.at_once.append(SlowStore._waiting)
        await asyncio.sleep(0.01)
        SlowStore._waiting -= 1
        return fsspec.filesystem("memory").cat_file(path, start=start, end=end)


fsspec.register_implementation("slowstore", SlowStore, clobber=True)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Prefixes of the same three shards on the disk and in memory."""
    rng = np.random.default_rng(0)
    local = []
    for number, dtype in enumerate((np.uint16, np.int32, np.uint16)):
        prefix = tmp_path / f"0000{number}.train"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for length in rng.integers(1, 60, size=40).tolist():
            builder.add_document(torch.from_numpy(rng.integers(0, 60_000, size=length)), [length])
        builder.finalize(f"{prefix}.idx")
        local.append(str(prefix))
    memory = fsspec.filesystem("memory")
    for prefix in local:
        for ending in (".bin", ".idx"):
            memory.pipe_file(f"/prepared/{Path(prefix).name}{ending}", Path(f"{prefix}{ending}").read_bytes())
    yield local, [f"PROTOCOL:///prepared/{Path(prefix).name}" for prefix in local]
    memory.rm("/prepared", recursive=True)


def stream_of(prefixes: list[str], protocol: str = "memory") -> TokenStream:
    return TokenStream([prefix.replace("PROTOCOL", protocol) for prefix in prefixes])


@pytest.mark.parametrize("protocol", ["memory", "slowstore"])
def test_a_remote_stream_is_the_local_one(protocol: str, shards: tuple[list[str], list[str]]) -> None:
    near, far = TokenStream(shards[0]), stream_of(shards[1], protocol)
    assert (far.num_tokens, far.num_documents) == (near.num_tokens, near.num_documents)
    assert np.array_equal(far.window(0, far.num_tokens), near.window(0, near.num_tokens))
    assert np.array_equal(far.document_starts(5, far.num_tokens), near.document_starts(5, near.num_tokens))
    start = np.arange(0, near.num_tokens - 200, 61)
    source = np.zeros(len(start), dtype=np.int64)
    for read, length in ((read_windows, 200), (read_ends, 100)):
        ours, theirs = (np.full((len(start), length), -1, dtype=np.int32) for _ in range(2))
        read([far], source, start, ours)
        read([near], source, start, theirs)
        assert np.array_equal(ours, theirs)
    one, other = near.document(100), far.document(100)
    assert (one.index, one.start, one.stop, one.shard.name) == (other.index, other.start, other.stop, other.shard.name)


def test_a_batch_is_asked_for_at_once_over_all_its_streams(shards: tuple[list[str], list[str]]) -> None:
    streams = [stream_of(shards[1], "slowstore"), stream_of(shards[1][1:], "slowstore")]
    out = np.empty((10, 20), dtype=np.int32)
    SlowStore.at_once.clear()
    read_windows(streams, np.arange(10) % 2, np.arange(10) * 3, out)
    assert SlowStore.at_once == [10] * 10


def test_objects_that_are_missing_short_or_replaced_are_named(
    shards: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    address = "memory:///prepared/00001.train"
    stream = TokenStream([address])
    path = "/prepared/00001.train.bin"
    whole = memory.cat_file(path)
    memory.pipe_file(path, whole[:-4])
    with pytest.raises(DataError, match=rf"{address}\.bin ends at byte {len(whole) - 4}: bytes 0 to {len(whole)} were"):
        stream.window(0, stream.num_tokens)
    monkeypatch.setattr(remote_shard, "_LOOK_SECONDS", -1.0)
    with pytest.raises(DataError, match=rf"{address}\.bin was replaced during the run: its size was {len(whole)} and"):
        stream.window(0, 1)
    monkeypatch.setattr(remote_shard, "_LOOK_SECONDS", 300.0)
    memory.rm_file(path)
    with pytest.raises(DataError, match=rf"{address}\.bin was deleted during the run"):
        stream.window(0, 1)
    with pytest.raises(DataError, match=rf"{address}\.bin does not exist; the prepared data is incomplete"):
        TokenStream([address])
    memory.pipe_file(path, whole[:-4])
    with pytest.raises(DataError, match=rf"{address}\.bin is torn: it ends at byte {len(whole) - 4}, its index needs"):
        TokenStream([address])


def test_a_store_that_cannot_be_read_here_says_what_to_install_when_it_is_used() -> None:
    stream = TokenStream([ShardFile("s3://bucket/00000.train", "uint16", 1, 10)])
    with pytest.raises(DataError, match=r"pip install s3fs"):
        stream.window(0, 1)


def test_an_error_of_the_store_names_object_and_byte(
    shards: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = TokenStream(["memory:///prepared/00000.train"])

    def refuse(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        raise PermissionError("token expired")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(DataError, match=r"00000\.train\.bin cannot be read at byte 6 \(PermissionError: token expired"):
        stream.window(3, 4)


def test_indexes_held_in_memory_are_bounded(
    shards: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_shard, "_INDEX_BYTES", 1)
    held = remote_shard.INDEXES._files
    stream = stream_of(shards[1])
    expected = TokenStream(shards[0]).document_starts(0, stream.num_tokens)
    assert np.array_equal(stream.document_starts(0, stream.num_tokens), expected)
    assert len(held) == 1
