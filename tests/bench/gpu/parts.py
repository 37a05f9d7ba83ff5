"""Where a profiled step's time goes: attention, matrix products, loss, optimizer, copies, elementwise, idle.

A kernel belongs to a part by its own name, else by the operators that launched it (`Optimizer.step`, a loss's
backward). Products of a fused loss and of a compiled graph keep their names, so they count as products; so do those of
attention that is no single kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.autograd import DeviceType

PARTS = ("attention", "gemm", "loss", "optimizer", "copies", "elementwise", "idle")

_ATTENTION = re.compile(r"fmha|flash|sdpa|scaled_dot_product|attention_(forward|backward)|mha_", re.IGNORECASE)
_GEMM = re.compile(
    r"gemm|nvjet|cutlass|wgmma|cublas|xmma|aten::(mm|addmm|bmm|baddbmm|matmul|linear|_scaled_mm)|mkl", re.IGNORECASE
)
_LOSS = re.compile(
    r"cross_?entropy|nll_loss|NllLoss|log_?softmax|logsumexp|chunked|fused_linear_ce|Loss(Backward)?\b", re.IGNORECASE
)
_OPTIMIZER = re.compile(r"optimizer\.step|adam|multi_tensor|clip_grad|_foreach_|lerp", re.IGNORECASE)
_COPIES = re.compile(r"memcpy|memset|direct_copy|aten::(copy_|_to_copy|to|clone|contiguous|cat)$", re.IGNORECASE)


def part_of(kernel: str, operators: Iterable[str] = ()) -> str:
    """Part of one kernel.

    Args:
        kernel: its name.
        operators: names of the operators it was launched in, innermost first.
    """
    around = list(operators)
    for part, pattern in (("attention", _ATTENTION), ("gemm", _GEMM)):
        if pattern.search(kernel):
            return part
    for part, pattern in (("optimizer", _OPTIMIZER), ("loss", _LOSS), ("attention", _ATTENTION)):
        if pattern.search(kernel) or any(pattern.search(name) for name in around):
            return part
    return "copies" if _COPIES.search(kernel) or any(_COPIES.search(name) for name in around[:1]) else "elementwise"


def seconds_by_part(events: Iterable[Any], *, wall_seconds: float) -> dict[str, float]:
    """Seconds of device time by part; of the host's own time where no kernel ran.

    Args:
        events: `torch.profiler.profile.events()`.
        wall_seconds: of what was profiled. What no kernel fills of it is `idle`.
    """
    listed = list(events)
    seconds = dict.fromkeys(PARTS, 0.0)
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in listed
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    if spans:
        for name, operators, microseconds in _kernels(listed):
            seconds[part_of(name, operators)] += 1e-6 * microseconds
        busy = 1e-6 * _covered(spans)
    else:
        for event in listed:
            if event.self_cpu_time_total > 0:
                seconds[part_of(event.name, _ancestors(event))] += 1e-6 * event.self_cpu_time_total
        busy = sum(seconds.values())
    seconds["idle"] = max(wall_seconds - busy, 0.0)
    return seconds


def _kernels(events: Sequence[Any]) -> Iterator[tuple[str, list[str], float]]:
    """Name, operators and microseconds of every kernel: the profiler hangs a kernel to the operator it came from.

    Annotated stretches (`Optimizer.step`) show up on the device's side too; they are no kernels.
    """
    annotations = {event.name for event in events if event.is_user_annotation}
    for event in events:
        for kernel in event.kernels:
            if kernel.name not in annotations:
                yield kernel.name, [event.name, *_ancestors(event)], kernel.duration


def _ancestors(event: Any) -> list[str]:
    names, parent = [], event.cpu_parent
    while parent is not None:
        names.append(parent.name)
        parent = parent.cpu_parent
    return names


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
