"""What every benchmark shares: how its result file looks, which machine it ran on, and whether that was quiet.

Knows nothing of what is measured. A result is {"name", "figures", "command", "machine", "versions", "date"}; a figure
that could not be measured is null, and `figures["missing"]` then holds the reason under the same name.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

QUIET_LOAD = 0.3
"""Largest one-minute load average at which timings are worth quoting."""


def write_result(
    path: Path,
    *,
    name: str,
    figures: Mapping[str, Any],
    command: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, str | None],
) -> dict[str, Any]:
    """Writes the result file, numbers rounded to five significant digits, and returns what it holds."""
    result = {
        "name": name,
        "figures": _rounded(dict(figures)),
        "command": command,
        "machine": dict(machine),
        "versions": dict(versions),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def describe_machine(*, threads: int) -> dict[str, Any]:
    """CPU, cores this process may use, threads per process as the benchmark set them, and the load before it ran."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def is_quiet(machine: Mapping[str, Any]) -> bool:
    """Whether the machine was idle before the benchmark; warns when not."""
    quiet = machine["load_before"] <= QUIET_LOAD
    if not quiet:
        print(
            f"warning: the load average is {machine['load_before']}, above {QUIET_LOAD}: other work shares this "
            "machine. Wall times are not worth quoting; CPU times suffer less.",
            file=sys.stderr,
            flush=True,
        )
    return quiet


def package_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Installed versions; None for a package that is not there."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Ours over theirs; None where either is missing or theirs is not above 0, so that no ratio is made of noise."""
    return None if ours is None or theirs is None or theirs <= 0.0 else ours / theirs


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "first_quartile": low, "third_quartile": high}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
