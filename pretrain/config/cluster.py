"""The machines a job asks for; read by sweeps and by `launch/`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    nodes: int = 1
    """Machines of a job."""
    processes_per_node: int = 1
    """Processes on each machine, one per GPU. A sweep (`-m`) starts each of its jobs with this many."""
