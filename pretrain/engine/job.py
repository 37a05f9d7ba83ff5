"""The processes of a job, before any engine exists: who am I, wait for all, do something once for all."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from pretrain.engine.agree import agree
from pretrain.engine.device import backend, prepare_device, read_later
from pretrain.errors import EngineError, FinelineError
from pretrain.launcher import network_problem, read_launched

T = TypeVar("T")


class Job:
    """One process among those that a launcher started; alone when there was no launcher.

    Args:
        timeout_minutes: how long a collective may wait before the job ends with an error.

    Attributes:
        rank: global rank of this process.
        world_size: number of processes.
        device: where this process computes.
    """

    def __init__(self, *, timeout_minutes: int) -> None:
        launched = read_launched()
        if torch.cuda.is_available():
            _choose_gpu(launched.local_rank)
        self.device = prepare_device()
        timeout = datetime.timedelta(minutes=timeout_minutes)
        try:
            if launched.address is not None:
                dist.init_process_group(backend(), timeout=timeout)
            else:
                dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        except dist.DistError as error:
            raise EngineError(network_problem(error, launched.address)) from error
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def barrier(self) -> None:
        """Waits for every process."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank; small Python objects only."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def once(self, work: Callable[[], T]) -> T:
        """Does the work on rank 0 and gives its result, or its exception, to every rank.

        Raises:
            Exception: whatever the work raised, on every rank: none is left waiting.
        """
        result: T | None = None
        failure: Exception | None = None
        if self.rank == 0:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - raised below, on every rank
                failure = _portable(error)
        result, failure = self.broadcast((result, failure))
        if failure is not None:
            raise failure
        return cast(T, result)

    def everywhere(self, work: Callable[[], T], *, what: str) -> T:
        """Does work that meets no other rank, on every rank; if it fails on one, no rank goes on.

        Args:
            work: such as reading a file.
            what: names it as the subject of a sentence: "Reading the plan".

        Raises:
            FinelineError: on a rank whose work raised one, the same.
            EngineError: on every other rank; names a rank that failed and its cause.
        """
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised below, on every rank
            failure = error
        try:
            agree(failure, what=what)
        except EngineError:
            if isinstance(failure, FinelineError):
                raise failure from None
            raise
        return cast(T, result)

    def maximum(self, value: int) -> int:
        """The largest value of all ranks."""
        if self.world_size == 1:
            return value
        told = torch.tensor([value], device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told.item())

    @property
    def answers_late(self) -> bool:
        """Whether an answer of `ask` is worth leaving alone for a step: it queues behind the device's work."""
        return self.world_size > 1 and self.device.type == "cuda"

    def ask(self, flag: bool) -> Callable[[], bool]:
        """Whether the flag is set on at least one rank, to be read when it is wanted; every rank asks."""
        if self.world_size == 1:
            return lambda: flag
        told = torch.full((1,), float(flag), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        answer = read_later(told)
        return lambda: answer()[0] > 0

    def close(self) -> None:
        """Leaves the job."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _portable(error: Exception) -> Exception:
    """The same error, or its words where it cannot travel, as those of classes that a task's own file defines."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (whatever pickling it raises, rank 0 must not leave the others waiting)
        return EngineError(f"{type(error).__name__}: {error}")
    return error


def _choose_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise EngineError(
            f"LOCAL_RANK={local_rank} in the environment, but this machine shows {count} GPUs to the process. Start as "
            "many processes a machine as it has GPUs, or unset LOCAL_RANK."
        )
    torch.cuda.set_device(local_rank)
