"""Ranks agree whether one of them has failed, so that none waits for a rank that will not come.

Between two collectives each rank works on its own, and may fail on its own: out of memory, a file that is not there. A
rank that then leaves, or goes on to another collective than its peers, makes them wait until the job's time-out. So
what may fail on one rank is followed by `agree`, which raises the same error on every rank.

torch is imported where ranks meet: who compiles a plan reads modules that use this one, and needs no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pretrain.errors import EngineError, FinelineError

if TYPE_CHECKING:
    import torch


def agree(error: Exception | None = None, *, number: int = 0, what: str = "Scoring") -> bool:
    """Every rank calls it after work of its own.

    Args:
        error: what this rank failed with.
        number: anything that should be the same on every rank, below 2⁶³.
        what: what is being done, as the subject of a sentence.

    Returns:
        Whether every rank gave the same number.

    Raises:
        EngineError: on every rank the same, if one has failed.
    """
    import torch
    import torch.distributed as dist

    failed, same = (0 if error is None else dist.get_rank() + 1), True
    if dist.get_world_size() > 1:
        device = _device()
        told = torch.tensor([number, -number, failed], dtype=torch.int64, device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        largest, smallest, failed = told.tolist()
        same = largest == -smallest
    if not failed:
        return same
    cause = [str(error) if isinstance(error, FinelineError) else f"{type(error).__name__}: {error}"]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(cause, src=failed - 1, device=device)
    raise EngineError(f"{what} failed on rank {failed - 1}: {cause[0]}") from error


@contextlib.contextmanager
def failing_together(what: str = "Scoring") -> Iterator[None]:
    """Work that begins with `agree` on every rank: one that fails before it gets there agrees here.

    Args:
        what: as for `agree`.

    Raises:
        EngineError: on every rank the same, if one has failed before the ranks agreed for the first time.
    """
    import torch.distributed as dist

    before = _collectives()
    try:
        yield
    except Exception as error:
        has_agreed = not dist.is_initialized() or _collectives() > before
        if not has_agreed and not (isinstance(error, EngineError) and dist.get_world_size() == 1):
            agree(error, what=what)
        raise


def _collectives() -> int:
    """How many collectives of the whole job this rank has begun."""
    import torch.distributed as dist

    everyone: Any = dist.group.WORLD
    return 0 if everyone is None else int(everyone._get_sequence_number_for_group())


def _device() -> torch.device:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
