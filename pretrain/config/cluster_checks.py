"""What can be wrong with the `cluster` group alone: numbers that no machine has. Called by `checks.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pretrain.config.cluster import ClusterConfig

_SHARES = ("matmul_share", "attention_share", "memory_share", "link_share", "network_share")
_ABOVE_ZERO = (
    "memory_gib",
    "peak_teraflops",
    "fp32_teraflops",
    "memory_gigabytes_per_second",
    "link_gigabytes_per_second",
    "network_gigabits_per_second",
    "host_gigabytes_per_second",
    "host_memory_gigabytes_per_second",
    "storage_gigabytes_per_second",
    "tokens_per_second_per_device",
)
_LATENCY = "network_latency_microseconds"


def cluster_problems(cluster: ClusterConfig) -> Iterator[str]:
    """Numbers out of range, one line each; null is always allowed."""
    for name in _SHARES:
        value = getattr(cluster, name)
        if value is not None and not 0 < value <= 1:
            yield f"cluster.{name}={value} is out of range: a share of the peak is above 0 and at most 1."
    for name in _ABOVE_ZERO:
        value = getattr(cluster, name)
        if value is not None and not 0 < value < math.inf:
            yield f"cluster.{name}={value} is out of range: it must be above 0 and finite, or null if not known."
    latency = cluster.network_latency_microseconds
    if latency is not None and not 0 <= latency < math.inf:
        yield f"cluster.{_LATENCY}={latency} is out of range: it must be at least 0 and finite, or null if not known."
