"""Imports DeepSpeed so that it says only what its user must hear, and needs no compiler on a CPU."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch


def load_deepspeed() -> Any:
    """The package. Everything that uses it calls this first.

    On a CPU `deepspeed.initialize` would build a shared-memory all-reduce with ninja, every first time; gloo does as
    well.
    """
    # Otherwise it guesses, and warns that it did.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
