"""The one place that teaches Megatron-core to live without CUDA.

Megatron-core 0.16 names "cuda" literally in tensor factories, asks `torch.cuda` for a device and for random
state, and recognises fp32 gradients by the string 'torch.cuda.FloatTensor'. Where CUDA is present nothing is
touched. Where it is absent, `prepare_device` applies the shims below, once per process; each names what it
replaces, why, and who upstream needs it, and `tests/contracts/test_megatron_names.py` fails when one vanishes.
"""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "empty_like")
_VECTOR_FUNCTIONS = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sqrt",
    "tan", "tanh",
)  # fmt: skip
"""What torch leaves to MKL's vector functions on CPU (aten/src/ATen/cpu/vml.h)."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shim:
    """One replaced attribute.

    Attributes:
        module: dotted module (or class) that owns the attribute.
        attribute: its name.
        reason: what fails on CPU without the replacement.
        upstream: who needs it, as path in megatron-core 0.16.1.
        make: the original attribute -> its replacement.
    """

    module: str
    attribute: str
    reason: str
    upstream: str
    make: Callable[[Any], Any]

    def owner(self) -> Any:
        """The object that holds the attribute."""
        if self.module == "torch.Tensor":
            return torch.Tensor
        return importlib.import_module(self.module)


def _factory_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def create(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and getattr(device, "type", device) == "cuda":
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return original(*args, **kwargs)

    return create


def _type_name_as_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = original(self, *args, **kwargs)
        if args or kwargs or not isinstance(name, str):
            return name
        return name.replace("torch.", "torch.cuda.", 1)

    return type_name


def _set_cpu_rng(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _get_cpu_rng(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _seed_cpu(seed: int) -> None:
    torch.random.default_generator.manual_seed(seed)


_RANDOM = "megatron.core.tensor_parallel.random"

SHIMS: tuple[Shim, ...] = (
    Shim(
        "torch.cuda",
        "current_device",
        "parameters are created there",
        "tensor_parallel/layers.py",
        lambda _: lambda: _CPU,
    ),
    Shim(
        "torch.cuda",
        "synchronize",
        "called around timers and p2p",
        "pipeline_parallel/schedules.py",
        lambda _: lambda *a: None,
    ),
    Shim(
        "torch.cuda",
        "current_stream",
        "gradient buckets ask for it from 0.17 on, to wait for CUDA graphs",
        "distributed/param_and_grad_buffer.py",
        lambda _: lambda *a: torch.cpu.current_stream(),
    ),
    Shim("torch.cuda", "get_rng_state", "CUDA generator", _RANDOM, lambda _: _get_cpu_rng),
    Shim("torch.cuda", "set_rng_state", "CUDA generator", _RANDOM, lambda _: _set_cpu_rng),
    Shim("torch.cuda", "manual_seed", "CUDA generator", _RANDOM, lambda _: _seed_cpu),
    Shim(
        "torch.Tensor",
        "cuda",
        "moves of flags and norms",
        "optimizer/optimizer.py",
        lambda _: lambda self, *a, **k: self,
    ),
    Shim(
        "torch.Tensor",
        "type",
        "fp32 is recognised by its CUDA type name",
        "optimizer/clip_grads.py",
        _type_name_as_cuda,
    ),
    Shim(_RANDOM, "_get_cuda_rng_state", "binds the CUDA default generator", _RANDOM, lambda _: _get_cpu_rng),
    Shim(_RANDOM, "_set_cuda_rng_state", "binds the CUDA default generator", _RANDOM, lambda _: _set_cpu_rng),
    *(
        Shim("torch", name, 'device="cuda" is written literally', "pipeline_parallel/schedules.py", _factory_on_cpu)
        for name in _FACTORIES
    ),
)

_applied = False

# Said by Megatron at every import and step, of things this product has chosen: no Apex, no TransformerEngine, its
# own use of `.grad` on shards, collectives that newer torch renames. None of it is the user's to act on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core\.")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")


def prepare_device() -> torch.device:
    """The device of this process, ready for Megatron-core; idempotent.

    Returns:
        The CUDA device of the local rank, or the CPU after the shims are applied.
    """
    settle_vector_math()
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    global _applied
    if not _applied:
        # `with torch.device(...)` redirects a cached set of factory functions. It must be filled before the
        # factories are rebound, or Hugging Face models in this process keep uninitialised buffers, silently.
        import torch.utils._device as torch_device

        torch_device._device_constructors()
        # It compares the CPU's and the GPU's random state, which are one here, and finds that one changed the other.
        logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
        for shim in SHIMS:
            owner = shim.owner()
            setattr(owner, shim.attribute, shim.make(getattr(owner, shim.attribute)))
        _applied = True
    return _CPU


def settle_vector_math() -> None:
    """Lets MKL choose its vector functions while one thread asks, so that the first answers are the right ones.

    It chooses at a function's first call. Where that call comes from two threads at once, one of them now and then
    computes its part with a fast variant, once (pytorch/pytorch issue 188792): here the first cosine was off by up to
    1.5e-4 in 20 of 1,900 fresh processes with two threads, and after a call on a single number in none of 3,000
    (torch 2.13.0). Rotary embeddings, softmax sums and Adam's square root are such calls.
    """
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype)
        for name in _VECTOR_FUNCTIONS:
            getattr(torch, name)(half)


def to_device(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers of the host as a tensor on the device, without a wait of the host.

    To a GPU they go from pinned memory on a stream of their own: they do not queue behind the work that the GPU has
    been given already, and what is given to it from now on waits for them.

    Args:
        array: not changed from here on: on a CPU the tensor shares its memory.
        device: where they are wanted.
        dtype: theirs there; None is that of the array.
    """
    tensor = torch.as_tensor(array, dtype=dtype)
    if device.type != "cuda":
        return tensor.to(device)
    stream, current = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    current.wait_stream(stream)
    moved.record_stream(current)  # its memory belongs to the other stream's pool
    return moved


def read_later(values: torch.Tensor) -> Callable[[], list[float]]:
    """Numbers of the device, to be read when it has made them: now nobody waits.

    Args:
        values: 1-D.

    Returns:
        Gives the numbers; waits until this one tensor is there, whatever the device has been given since.
    """
    if values.device.type != "cuda":
        found = values.tolist()
        return lambda: found
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def read() -> list[float]:
        there.synchronize()
        return on_host.tolist()

    return read


@functools.cache
def _copy_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


def backend() -> str:
    """Communication backend that fits the device: `nccl` or `gloo`."""
    return "nccl" if torch.cuda.is_available() else "gloo"
