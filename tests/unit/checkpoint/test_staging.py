"""The staging memory without a GPU: what is locked, when, and what happens when it cannot be."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch

from pretrain.checkpoint import staging
from pretrain.checkpoint.blocks import KINDS, Block, Chunk
from pretrain.checkpoint.staging import Staging


def chunk(size: int) -> Chunk:
    return Chunk(Block("w", (size,), (0,), (size,)), 0, {kind: torch.randn(size) for kind in KINDS})


def test_memory_is_kept_from_save_to_save_and_grows_when_it_must() -> None:
    memory = Staging(KINDS)
    addresses = []
    for size in (1000, 400, 2000):
        chunks = [chunk(size), chunk(3)]
        with memory.filled(chunks):
            pass
        for index, kind in enumerate(KINDS):
            expected = torch.cat([one.tensors[kind] for one in chunks])
            assert torch.equal(torch.from_numpy(memory.row(index, size + 3)), expected)
        addresses.append(memory.row(0, 1).ctypes.data)
    assert addresses[0] == addresses[1] and not memory.is_page_locked()


def test_a_reservation_does_not_wait_for_the_lock_and_the_first_copy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    go, locked = threading.Event(), []
    monkeypatch.setattr(staging, "_device_of", lambda chunks: torch.device("cuda"))
    monkeypatch.setattr(staging, "_page_lock", lambda buffer, device: go.wait(30) and locked.append(buffer))
    memory = Staging(KINDS)
    memory.reserve([chunk(10)])
    assert not locked
    go.set()
    memory.is_page_locked()
    assert [tuple(buffer.shape) for buffer in locked] == [(3, 10)]
    memory.reserve([chunk(10)])  # there is room already
    assert len(locked) == 1


@pytest.mark.parametrize("error", [0, 2])
def test_a_refusal_is_a_warning_and_locked_memory_is_released(
    error: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int]] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: calls.append(("lock", address)) or error,
        cudaHostUnregister=lambda address: calls.append(("release", address)),
        cudaGetErrorString=lambda code: {2: "out of memory"}[code],
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = torch.empty(3, 5)
    address = buffer.data_ptr()
    staging._page_lock(buffer, torch.device("cuda"))
    del buffer
    assert calls == ([("lock", address)] if error else [("lock", address), ("release", address)])
    assert ("60 bytes for saving could not be page-locked: out of memory" in capsys.readouterr().err) == bool(error)


@pytest.mark.parametrize("fails", [False, True])
def test_a_gpu_copies_after_what_was_launched_and_is_waited_for_at_the_end(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    stream = SimpleNamespace(
        wait_stream=lambda other: happened.append(f"follows {other}"),
        synchronize=lambda: happened.append("waited for"),
    )
    monkeypatch.setattr(staging, "_device_of", lambda chunks: torch.device("cuda"))
    monkeypatch.setattr(staging, "_page_lock", lambda buffer, device: happened.append("locked"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "training")
    monkeypatch.setattr(torch.cuda, "stream", lambda used: contextlib.nullcontext(happened.append("copied")))
    with contextlib.suppress(ValueError), Staging(KINDS).filled([chunk(4)]):
        happened.append("inside")
        if fails:
            raise ValueError
    assert happened == ["locked", "follows training", "copied", "inside", "waited for"]
