"""What datatrove runs: one unit a task, in a process of its own, on this machine or on a node of a cluster.

Imported only where datatrove runs tasks, because importing datatrove takes half a second. Its marks of completion are
not asked: what is done stands in the units' states (`unit_state.py`). `main` is the local executor, a program of its
own because datatrove forks, which a trainer with threads and process groups must not.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from pretrain.data.execute import LOGS
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.data.shards import run_unit
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unit_state import STATE
from pretrain.data.units import PLAN_NAME, Plan, read_plan
from pretrain.durable import replace_file
from pretrain.errors import FinelineError
from pretrain.terminal import accept_every_character

_PR_SET_PDEATHSIG = 1


class TokeniseUnit(PipelineStep):
    """Task n makes unit n of the plan in a folder; see `run_unit`."""

    name = "unit of text to token shards"
    type = "tokenise"

    def __init__(self, writing: str, *, ends_with_parent: bool) -> None:
        """Keeps where to look; everything else is read in the worker.

        Args:
            writing: folder in the making, on storage that every worker sees.
            ends_with_parent: a worker whose parent is gone ends.
        """
        super().__init__()
        self.writing = writing
        self.ends_with_parent = ends_with_parent

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Makes one unit; an error of ours is left where the main process finds it."""
        accept_every_character()  # on a node of a cluster datatrove has started this process
        writing = Path(self.writing)
        parent = os.getppid()

        def check() -> None:
            if self.ends_with_parent and os.getppid() != parent:
                os._exit(1)

        plan, tokenizer = _load(self.writing)
        unit = plan.units[rank]
        error_path = writing / STATE / f"{rank:05d}.error.json"
        try:
            run_unit(writing, plan, unit, tokenizer=tokenizer, on_items=check)
        except FinelineError as error:
            try:
                replace_file(error_path, json.dumps({"type": type(error).__name__, "message": str(error)}))
            except OSError:
                print(f"error: {error}", file=sys.stderr)
            raise RuntimeError(str(error)) from None  # datatrove pickles it: of a type that needs nothing of ours
        yield from ()


@functools.lru_cache(maxsize=1)
def _load(writing: str) -> tuple[Plan, Tokenizer]:
    return read_plan(Path(writing) / PLAN_NAME), Tokenizer.load(Path(writing) / TOKENIZER_NAME)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """Runs all units on this machine; see the module."""
    accept_every_character()
    parser = argparse.ArgumentParser()
    parser.add_argument("writing", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with_parent()
    if os.getppid() != options.parent:  # it ended before we asked
        return 1
    plan = read_plan(options.writing / PLAN_NAME)
    os.register_at_fork(after_in_child=die_with_parent)
    LocalPipelineExecutor(
        [TokeniseUnit(str(options.writing), ends_with_parent=True)],
        tasks=len(plan.units),
        workers=options.workers,
        logging_dir=str(options.writing / LOGS),
        skip_completed=False,
        # This process is there to be forked: it has one thread. Workers of a forkserver have that for a parent, and
        # would not notice that we are gone; spawned ones ask for it only when they get a task.
        start_method="fork",
    ).run()
    return 0
