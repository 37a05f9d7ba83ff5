"""What the ranks of `test_memory_of_a_probe` run: training, with probes whose memory is counted."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.engine.base import GenerationRequest
from pretrain.engine.job import Job
from tests.parity.workers import Built, Layout, build, sample, validation

REPEATS = 20
WARM_UP = 60
"""torch keeps a record of its last collectives of several kinds, each of which grows until it is full."""


def reachable() -> dict[int, int]:
    """Address and bytes of every storage that a tensor in this process reaches."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        # Not `isinstance`: that asks proxies for their class, which some answer by importing things.
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def net_bytes(work: Any) -> int:
    """Bytes that torch's CPU allocator gave out in the work and did not get back, whoever holds them.

    It sees what this thread gives back; gloo's threads, too, are the last to hold a tensor now and then.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
        gc.collect()
    return sum(event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")


_FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _Mallinfo2(ctypes.Structure):
    _fields_ = [  # glibc's malloc.h
        (name, ctypes.c_size_t) for name in _FIELDS
    ]


def heap_bytes() -> int:
    """Bytes of this process's heap that are in use, by all threads."""
    gc.collect()
    call = ctypes.CDLL(None).mallinfo2
    call.restype = _Mallinfo2
    info = call()
    return int(info.uordblks + info.hblkhd)


def probe(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Per layout: storages before and after scoring and generating, and what the allocator says."""
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built = build(layout, job)
        built.step(0)
        before = reachable()
        _score_and_generate(built)
        after = reachable()
        built.step(1)
        net = net_bytes(lambda built=built: _score_and_generate(built))
        results.append({"name": layout.name, "before": before, "after": after, "net": net})
        built.engine.close()
    job.close()
    return results


def probe_often(layouts: list[Layout]) -> list[int]:
    """Per layout: bytes by which many probes let the heap grow."""
    job = Job(timeout_minutes=5)
    grown = []
    for layout in layouts:
        built = build(layout, job)
        built.step(0)
        for _ in range(WARM_UP):
            _score_and_generate(built)
        heap = heap_bytes()
        for _ in range(REPEATS):
            _score_and_generate(built)
        grown.append(heap_bytes() - heap)
        built.engine.close()
    job.close()
    return grown


def _score_and_generate(built: Built) -> None:
    built.engine.score(validation()._rows)
    built.engine.generate([GenerationRequest(sample(index)[:9].tolist(), 6) for index in range(3)])
