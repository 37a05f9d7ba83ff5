"""Which GPU and which packages a result is from."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from tests.bench.result import describe_machine, package_versions


def describe() -> dict[str, Any]:
    """The machine, with its GPU where there is one; starts CUDA in this process for a moment only."""
    return describe_machine(threads=0) | {"gpu": _gpu()}


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Torch with CUDA and cuDNN as this process has them, and the packages named."""
    import torch

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()) if torch.cuda.is_available() else None,
        **package_versions(["triton", *packages]),
    }


def _gpu() -> dict[str, str] | None:
    """Name, driver, memory, power limit and clocks at idle, as the driver's tool gives them."""
    asked = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(asked, [one.strip() for one in told.splitlines()[0].split(",")], strict=True))
