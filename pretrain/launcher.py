"""What a launcher says of this process in the environment: its rank, how many processes there are, where they meet.

torchrun and deepspeed set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT together. A variable that is left
over from another job would make a process wait for others that nobody started, so a part of them is an error.
Torch-free: it is read before anything heavy is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import EngineError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_WHOLE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
_ALONE = "To run one process, unset RANK, WORLD_SIZE and LOCAL_RANK"
_MANY = "to run several, start them with launch/torchrun.sh, `python -m pretrain.torchrun` or deepspeed"


@dataclass(frozen=True, slots=True)
class Launched:
    """This process among those of a job.

    Attributes:
        rank: its global rank; 0 without a launcher.
        world_size: processes of the job; 1 without a launcher.
        local_rank: its rank on this machine.
        address: host and port where the processes meet; None without a launcher.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str | None = None


def read_launched(environment: Mapping[str, str] | None = None) -> Launched:
    """Reads the variables.

    Args:
        environment: for tests; by default this process's.

    Raises:
        EngineError: some variables are set and others that belong to them are not, or one is not what it must be.
    """
    variables = os.environ if environment is None else environment
    given = {name: variables[name].strip() for name in (*_NEEDED, "LOCAL_RANK") if variables.get(name, "").strip()}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return Launched(local_rank=_whole(given, "LOCAL_RANK", 0))
    missing = [name for name in _NEEDED if name not in given]
    if missing:
        listed = ", ".join(f"{name}={given[name]}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in given)
        raise EngineError(f"{listed} in the environment, but no {', '.join(missing)}. {_ALONE}; {_MANY}.")
    rank, world_size, local_rank, port = (_whole(given, name, 0) for name in ("RANK", "WORLD_SIZE", *_WHOLE[2:]))
    if not rank < world_size:
        raise EngineError(f"RANK={rank} must be below WORLD_SIZE={world_size} in the environment. {_ALONE}; {_MANY}.")
    if not 0 < port < 2**16:
        raise EngineError(f"MASTER_PORT={port} in the environment must be a port from 1 to {2**16 - 1}.")
    return Launched(rank, world_size, local_rank, f"{given['MASTER_ADDR']}:{port}")


def network_problem(error: Exception, address: str | None) -> str:
    """What to do about an error of torch's when processes could not meet.

    Args:
        error: of torch.distributed.
        address: host and port; None if only the launcher knows them.
    """
    text = str(error).split("\n")[0]
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        port = address.rpartition(":")[2] if address else text.partition("port: ")[2].partition(",")[0]
        return (
            f"Port {port}, at which the processes of this job meet, is in use by another program or job of this "
            "machine. Set MASTER_PORT (or --master-port) to a free port, the same on every node. On one machine, "
            "--standalone finds one."
        )
    where = f" at {address} (MASTER_ADDR, MASTER_PORT)" if address else ""
    return (
        f"The processes of this job could not meet{where}: {text} Check that the process of rank 0 runs, and that its "
        "host and port can be reached from this machine."
    )


def _whole(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal():
        raise EngineError(f"{name}={text} in the environment must be a whole number of 0 or more. {_ALONE}; {_MANY}.")
    return int(text)
