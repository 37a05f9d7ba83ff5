"""Seconds of collectives, and how much of them computation hides; part of the model of `throughput.py`.

Rings: a collective over n ranks moves (n - 1) / n of its bytes through every rank. Within a machine that is the link's
bandwidth; across machines a ring enters and leaves each machine once, so that all its ranks there share their adapters.
"""

from __future__ import annotations

from pretrain.config.cluster import ClusterConfig
from pretrain.plan.workload import Workload

OVERLAP_COST = 0.3
"""Share of a hidden collective that still shows: it takes memory bandwidth and compute units from what hides it. A
round number, not calibrated; the units alone are 15 % (20 of an H100's 132: DeepSeek-V3, arXiv 2412.19437).
"""


def exposed(seconds: float, *, beside: float) -> float:
    """What is seen of a collective that runs beside `beside` seconds of computation."""
    return max(seconds - beside, OVERLAP_COST * seconds)


class Links:
    """Collectives of one rank; per layer or per step as each method says."""

    def __init__(self, cluster: ClusterConfig, workload: Workload) -> None:
        self.workload = workload
        self.per_node = cluster.processes_per_node
        self.link = (cluster.link_gigabytes_per_second or 0.0) * 1e9 * (cluster.link_share or 0.0)
        self.network = (cluster.network_gigabits_per_second or 0.0) / 8 * 1e9 * (cluster.network_share or 0.0)
        self.latency = (cluster.network_latency_microseconds or 0.0) * 1e-6

    def ring(self, size: int, stride: int, num_bytes: float, pieces: float = 1.0) -> float:
        """An all-gather or reduce-scatter of `num_bytes`; an all-reduce is two of them.

        Args:
            size: ranks of the group.
            stride: distance of neighbours in it: ranks of the groups that vary faster.
            num_bytes: what the group holds together.
            pieces: collectives that it is done in; each pays the latency of its ring.
        """
        if size == 1:
            return 0.0
        inside = max(1, min(size, self.per_node // stride))  # ranks of the group on one machine
        machines = -(-size // inside)
        bandwidth = self.link if machines == 1 else inside * self.network
        if inside > 1:  # between machines the ring also runs along each one's links
            bandwidth = min(self.link, bandwidth)
        return num_bytes * (size - 1) / size / bandwidth + pieces * (machines - 1) * self.latency

    def tensor(self, *, recomputed: float) -> tuple[float, float]:
        """All-reduces of a layer: two in forward and two in backward; with recomputation forward's once more."""
        work = self.workload
        one = 2 * self.ring(work.tensor, 1, self._hidden_bytes)
        return 2 * one, 2 * one * (1 + recomputed)

    def context(self) -> float:
        """Keys and values of a layer gathered in forward, their gradients reduced in backward."""
        work = self.workload
        size = 2 * work.tokens * work.context * work.shape.key_value_size / work.tensor * work.element_bytes
        return 2 * self.ring(work.context, work.tensor, size)

    def pipeline(self) -> float:
        """Activations to the next stage and gradients back, of one microbatch; tensor ranks send a part each."""
        work = self.workload
        if work.pipeline == 1:
            return 0.0
        inside = work.devices // work.pipeline * 2 <= self.per_node
        sent = 2 * work.virtual_pipeline * self._hidden_bytes / work.tensor
        return sent / (self.link if inside else self.network)

    def shard(self, num_bytes: float, pieces: float) -> float:
        """A gather or a reduction over the ranks that share one copy out; where none do, half of an all-reduce."""
        work = self.workload
        size = min(work.shard_ranks or work.data * work.context, work.data * work.context)
        return self.ring(size, work.tensor, num_bytes, pieces)

    def replicas(self, num_bytes: float, pieces: float) -> float:
        """All-reduce between copies that are sharded each (hybrid sharding)."""
        work = self.workload
        ranks = work.data * work.context
        if work.shard_ranks is None or work.shard_ranks >= ranks:
            return 0.0
        stride = work.tensor * work.shard_ranks
        return 2 * self.ring(ranks // work.shard_ranks, stride, num_bytes / work.shard_ranks, pieces)

    @property
    def _hidden_bytes(self) -> float:
        work = self.workload
        return work.tokens * work.shape.hidden_size * work.element_bytes
