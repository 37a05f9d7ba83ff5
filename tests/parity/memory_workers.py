"""What the ranks of `test_memory_of_a_probe` run: training, with probes whose memory is counted."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.engine.base import GenerationRequest
from pretrain.engine.job import Job
from tests.parity.workers import Layout, build, sample, validation


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
    """Bytes that torch's CPU allocator gave out in the work and did not get back, whoever holds them."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
        gc.collect()
    return sum(event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")


def probe(layouts: list[Layout]) -> list[dict[str, Any]]:
    """Per layout: storages before and after scoring and generating, and what the allocator says."""
    job = Job(timeout_minutes=5)
    results = []
    for layout in layouts:
        built, rows = build(layout, job), validation()._rows
        engine = built.engine
        requests = [GenerationRequest(sample(index)[:9].tolist(), 6) for index in range(3)]
        built.step(0)
        before = reachable()
        engine.score(rows)
        engine.generate(requests)
        after = reachable()
        built.step(1)

        def both(engine: Any = engine, rows: Any = rows, requests: Any = requests) -> None:
            engine.score(rows)
            engine.generate(requests)

        results.append({"name": layout.name, "before": before, "after": after, "net": net_bytes(both)})
        engine.close()
    job.close()
    return results
