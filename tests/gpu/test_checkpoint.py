"""Staging of a GPU's state: the same bits, in page-locked memory, waited for once."""

from __future__ import annotations

import pytest
import torch

from pretrain.checkpoint import staging
from pretrain.checkpoint.blocks import KINDS, Block, Chunk
from pretrain.checkpoint.staging import Staging

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES = (1_000_003, 7, 300_000)


def state(dtype: torch.dtype = torch.float32, device: str = "cuda") -> list[Chunk]:
    return [
        Chunk(Block(f"w{n}", (size,), (0,), (size,)), 0, {k: torch.randn(size, device=device).to(dtype) for k in KINDS})
        for n, size in enumerate(SIZES)
    ]


def fill(memory: Staging, chunks: list[Chunk]) -> None:
    with memory.filled(chunks):
        pass


def assert_filled(memory: Staging, chunks: list[Chunk]) -> None:
    for index, kind in enumerate(KINDS):
        expected = torch.cat([chunk.tensors[kind].float().cpu() for chunk in chunks])
        assert torch.equal(torch.from_numpy(memory.row(index, sum(SIZES))), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_staging_is_bitwise_and_page_locked(dtype: torch.dtype) -> None:
    memory = Staging(KINDS)
    memory.reserve(state(dtype))
    for _ in range(2):  # memory is kept from save to save
        chunks = state(dtype)
        fill(memory, chunks)
        assert_filled(memory, chunks)
    assert memory.is_page_locked()


def test_staging_follows_the_work_of_the_current_stream() -> None:
    chunks, memory = state(), Staging(KINDS)
    fill(memory, chunks)
    torch.cuda._sleep(200_000_000)  # about a tenth of a second
    for chunk in chunks:
        for tensor in chunk.tensors.values():
            tensor.add_(1.0)
    fill(memory, chunks)
    assert_filled(memory, chunks)


def test_work_inside_runs_beside_the_copy_and_the_copy_is_complete_after_it() -> None:
    chunks, memory = state(), Staging(KINDS)
    with memory.filled(chunks):
        total = sum(chunk.tensors["param"].sum() for chunk in chunks)
    assert_filled(memory, chunks)
    expected = sum(chunk.tensors["param"].sum() for chunk in chunks)
    assert torch.equal(torch.as_tensor(total), torch.as_tensor(expected))


def test_state_kept_on_the_host_is_not_page_locked() -> None:
    chunks, memory = state(device="cpu"), Staging(KINDS)
    fill(memory, chunks)
    assert_filled(memory, chunks)
    assert not memory.is_page_locked()


def test_memory_the_driver_will_not_lock_is_said_once_and_used_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(staging, "_PORTABLE", 1 << 20)  # no such flag: the driver refuses
    chunks, memory = state(), Staging(KINDS)
    for _ in range(2):
        fill(memory, chunks)
        assert_filled(memory, chunks)
        torch.zeros(8, device="cuda").add_(1.0)  # not blamed for the refusal
    assert not memory.is_page_locked()
    assert capfd.readouterr().err.count("could not be page-locked") == 1
