"""The memory a save copies the state into before anything is written; one allocation, kept from save to save.

State of a GPU is copied at the speed of the bus only into page-locked memory, and locking it takes longer than the
copy: it is done once, on a thread, as early as somebody says how much is needed. Knows nothing of files.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pretrain.checkpoint.blocks import Chunk

_PORTABLE = 1  # cudaHostRegisterPortable: locked for every context of the process


class Staging:
    """fp32 host memory [kinds, elements].

    Args:
        kinds: which tensors of a chunk are copied, one row each.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = tuple(kinds)
        self._buffer = torch.empty(len(self._kinds), 0)
        self._locking: threading.Thread | None = None

    def reserve(self, chunks: Sequence[Chunk]) -> None:
        """Makes room for such a state; a GPU's is page-locked meanwhile, and only the first `filled` waits for that.

        Where the driver refuses to lock it, one warning says so and saves work all the same, slower.
        """
        total = sum(chunk.numel for chunk in chunks)
        if self._buffer.shape[1] >= total:
            return
        self._wait()
        self._buffer = torch.empty(len(self._kinds), 0)  # the old memory goes before the new one comes
        self._buffer = torch.empty(len(self._kinds), total)
        device = _device_of(chunks)
        if device.type == "cuda":
            # A thread of its own also because a refusal stays behind as CUDA's last error of the thread that asked,
            # and the next kernel launched there would be blamed for it.
            self._locking = threading.Thread(target=_page_lock, args=(self._buffer, device), name="page-lock")
            self._locking.start()

    @contextlib.contextmanager
    def filled(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Copies the state; it may be read inside of the context, and changed again after it.

        A GPU copies beside what is launched inside, after what was launched before, and is waited for once, at the end.
        """
        self.reserve(chunks)
        self._wait()
        device = _device_of(chunks)
        if device.type != "cuda":
            self._copy(chunks)
            yield
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._copy(chunks)
        try:
            yield
        finally:
            stream.synchronize()

    def row(self, index: int, num_elements: int) -> np.ndarray:
        """float32 [num_elements]: what was copied of one kind, chunk after chunk; valid until the next `filled`."""
        return self._buffer[index, :num_elements].numpy()

    def is_page_locked(self) -> bool:
        """Whether the memory is locked by now."""
        self._wait()
        return self._buffer.numel() > 0 and self._buffer.is_pinned()

    @torch.no_grad()
    def _copy(self, chunks: Sequence[Chunk]) -> None:
        at = 0
        for chunk in chunks:
            assert chunk.tensors.keys() >= set(self._kinds), f"{chunk.block.key}: chunk lacks one of {self._kinds}"
            for row, kind in enumerate(self._kinds):
                self._buffer[row, at : at + chunk.numel].copy_(chunk.tensors[kind].detach(), non_blocking=True)
            at += chunk.numel

    def _wait(self) -> None:
        if self._locking is not None:
            self._locking.join()
            self._locking = None


def _device_of(chunks: Sequence[Chunk]) -> torch.device:
    """The GPU that holds any of the state, else the CPU: an engine may offload a part."""
    devices = {tensor.device for chunk in chunks for tensor in chunk.tensors.values()}
    return next((device for device in devices if device.type == "cuda"), torch.device("cpu"))


def _page_lock(buffer: torch.Tensor, device: torch.device) -> None:
    """Locks memory that torch allocated.

    Not `pin_memory=True`: torch's host allocator rounds up to a power of two, 128 GiB for the 81 GB of 7B parameters.
    Pages are touched first, because the driver, given fresh ones, makes them under a lock that launches need
    (pytorch/pytorch#108488).
    """
    torch.cuda.set_device(device)  # a thread begins on device 0 and would make a context there
    buffer.zero_()
    runtime, address = torch.cuda.cudart(), buffer.data_ptr()
    error = runtime.cudaHostRegister(address, buffer.nbytes, _PORTABLE)
    if int(error) == 0:
        # Memory that is freed while it is registered cannot be registered again.
        weakref.finalize(buffer, runtime.cudaHostUnregister, address).atexit = False
        return
    print(
        f"warning: {buffer.nbytes:_} bytes for saving could not be page-locked: {runtime.cudaGetErrorString(error)}. "
        "Saves work, but hold training up several times longer. Give the process more host memory, or shard the "
        "state over more ranks (engine.distributed_optimizer).",
        file=sys.stderr,
        flush=True,
    )
