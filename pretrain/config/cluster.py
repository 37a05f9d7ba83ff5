"""The machines of a job: how many, and what one device of them can do.

`nodes` and `processes_per_node` belong to an experiment and are read by sweeps and by `launch/`. The rest describes a
device, comes from `configs/cluster/` and is what the planner predicts times with; a run never reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    nodes: int = 1
    """Machines of a job."""
    processes_per_node: int = 1
    """Processes on each machine, one per GPU. A sweep (`-m`) starts each of its jobs with this many."""
    device: str | None = None
    """Name of the accelerator, for people; null on a machine that nothing is known of."""
    memory_gib: float | None = None
    """Memory of a device that a process can use, GiB."""
    peak_teraflops: float | None = None
    """Dense bf16 peak of a device, TFLOP/s, by its data sheet."""
    fp32_teraflops: float | None = None
    """Peak of matrix products in fp32, for `precision=fp32`."""
    matmul_share: float | None = None
    """Share of the peak that the matrix products of a training step attain, 0 to 1; less than the best single shape."""
    attention_share: float | None = None
    """Share of the peak that fused attention attains over forward and backward, masked half not counted."""
    memory_gigabytes_per_second: float | None = None
    """Bandwidth of a device's memory, 1e9 bytes a second, by its data sheet."""
    memory_share: float | None = None
    """Share of that bandwidth that elementwise kernels attain."""
    link_gigabytes_per_second: float | None = None
    """Between devices of one machine, of one device and in one direction, by its data sheet."""
    link_share: float | None = None
    """Share of the link's bandwidth that large collectives attain."""
    network_gigabits_per_second: float | None = None
    """Between machines: the share of the adapters that one device has, in one direction. 1,600 of a machine with eight
    devices are 200."""
    network_share: float | None = None
    """Share of the network's bandwidth that large collectives attain."""
    network_latency_microseconds: float | None = None
    """Of one step of a collective between machines."""
    host_gigabytes_per_second: float | None = None
    """Between a device and its host's memory, of one device and in one direction."""
    host_memory_gigabytes_per_second: float | None = None
    """Of the host's memory: one device's share, for an optimizer that is kept there."""
    storage_gigabytes_per_second: float | None = None
    """What a whole job writes to shared storage; a property of the site, so that no group of ours sets it."""
    tokens_per_second_per_device: float | None = None
    """Measured for this run: takes the place of every prediction of throughput."""
