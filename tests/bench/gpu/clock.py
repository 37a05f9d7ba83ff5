"""Times a contender's optimizer steps on the device, and profiles the step after the timed ones.

The host runs ahead of a GPU, so a step is what lies between two events on the device: its end is the end of the
previous one. Where there is no GPU a clock of the host takes the events' place.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.bench.gpu.parts import seconds_by_part
from tests.bench.gpu.task import Task


class Clock:
    """Told of the end of every step, it measures those of the task."""

    def __init__(self, task: Task) -> None:
        self._task, self._ends = task, list[Any]()
        self._on_gpu = torch.cuda.is_available()
        self._profiler: Any = None
        self._memory: dict[str, float] = {}
        self._parts: dict[str, float] = {}
        self._profile_seconds = 0.0

    def follow_optimizer(self) -> None:
        """Ends a step at every update of a torch optimizer: for frameworks whose loop is their own."""
        register_optimizer_step_post_hook(lambda *_: self.step_ended())

    def step_ended(self) -> None:
        """Called when all work of a step has been given to the device."""
        self._ends.append(self._mark())
        number, task = len(self._ends), self._task
        if number == task.warmup_steps and self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if number == task.warmup_steps + task.timed_steps:
            self._synchronize()
            self._read_memory()
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._on_gpu:
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.__enter__()
            self._profile_seconds = -time.perf_counter()
        elif number == task.total_steps:
            self._synchronize()
            self._profile_seconds += time.perf_counter()
            self._profiler.__exit__(None, None, None)
            self._parts = seconds_by_part(self._profiler.events(), wall_seconds=self._profile_seconds)

    def figures(self) -> dict[str, Any]:
        """Seconds of a step, tokens per second, memory, and the seconds of the profiled step by part."""
        task = self._task
        assert len(self._ends) == task.total_steps, f"{len(self._ends)} of {task.total_steps} steps ended"
        ends = self._ends[task.warmup_steps - 1 : task.warmup_steps + task.timed_steps]
        seconds = [self._between(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        median = statistics.median(seconds)
        return {
            "seconds_per_step": median,
            "seconds_of_steps": seconds,
            "microseconds_per_token": 1e6 * median / task.shape.tokens_per_step,
            "tokens_per_second": task.shape.tokens_per_step / median,
            **self._memory,
            "profiled_step_seconds": self._profile_seconds,
            "profiled_step_parts": self._parts,
        }

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: Any, after: Any) -> float:
        return 1e-3 * before.elapsed_time(after) if self._on_gpu else after - before

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def _read_memory(self) -> None:
        if self._on_gpu:
            self._memory = {
                "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
                "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
            }
