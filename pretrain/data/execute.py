"""Who does the units: this process, workers on this machine, or a Slurm array. What is done, the units' states say.

Several processes are datatrove's: its local executor runs as a program of its own (`worker.py`), because it forks and
the trainer, which prepares small data by itself, has threads and process groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

import pretrain.errors
from pretrain.data.progress import Say, Watch
from pretrain.data.shards import run_unit
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unit_state import STATE
from pretrain.data.units import Plan
from pretrain.errors import DataError, FinelineError

LOGS = "logs"
MOST_WORKERS = 16
_BYTES_WORTH_PROCESSES = 16_000_000
"""Starting processes takes about as long as one of them needs for this much packed text."""
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_READS = 2.0
_SECONDS_TO_END = 3.0


def count_workers(plan: Plan, *, asked: int | None) -> int:
    """Processes that are worth it: those asked for, else one a core, and one for little text; never more than units."""
    if asked is None:
        stored = sum(unit.stored_bytes for unit in plan.units)
        cores = len(os.sched_getaffinity(0))
        asked = min(cores, MOST_WORKERS) if stored > _BYTES_WORTH_PROCESSES else 1
    return max(1, min(asked, len(plan.units)))


def run_units(writing: Path, plan: Plan, *, tokenizer: Tokenizer, workers: int, say: Say) -> Watch:
    """Makes all units that are not done yet.

    Args:
        writing: folder in the making; holds plan and tokenizer.
        plan: the units.
        tokenizer: what tokenises.
        workers: number of processes; 1 is this one.
        say: told how far it is every few seconds.

    Returns:
        The states of the units, all done.

    Raises:
        DataError: a unit failed, too much text is unusable, or a worker was killed. What is done is kept.
    """
    watch = Watch(writing, plan, say=say)
    if watch.is_done:
        return watch
    if workers > 1:
        _run_processes(writing, watch, workers=workers)
    else:
        for unit in plan.units:
            if not watch.states[unit.number].is_done:
                run_unit(writing, plan, unit, tokenizer=tokenizer, on_items=watch.tell)
                watch.read()
                watch.tell()
    watch.read()
    return watch


def clear_errors(writing: Path) -> None:
    """Forgets the errors of an earlier start."""
    for path in (writing / STATE).glob("*.error.json"):
        path.unlink(missing_ok=True)


def find_error(writing: Path) -> FinelineError | None:
    """The first error that a worker left, as what it was."""
    for path in sorted((writing / STATE).glob("*.error.json")):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            kind = getattr(pretrain.errors, found["type"], DataError)
            return kind(found["message"])
    return None


def _run_processes(writing: Path, watch: Watch, *, workers: int) -> None:
    clear_errors(writing)
    log = writing / LOGS / "workers.log"
    log.parent.mkdir(exist_ok=True)
    # Not `-m`: a worker would look for what it is sent in a module of another name.
    program = "import sys; from pretrain.data.worker import main; sys.exit(main())"
    command = [sys.executable, "-c", program, str(writing), "--workers", str(workers), "--parent", str(os.getpid())]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
    # Tokenising is one thread a worker; libraries that start one a core would only get in each other's way.
    environment |= {"OMP_NUM_THREADS": "1", "DATATROVE_COLORIZE_LOGS": "0"}
    with log.open("w", encoding="utf-8") as stream:
        # In a group of its own: an interrupt at the terminal comes to us, and we end it.
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            looked, crew = time.monotonic(), _Crew(process.pid)
            while process.poll() is None and crew.is_whole():
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                if time.monotonic() - looked > _SECONDS_BETWEEN_READS:
                    looked = time.monotonic()
                    watch.read()
                    watch.tell()
                if error := find_error(writing):
                    raise error
        finally:
            _end(process)
    if error := find_error(writing):
        raise error
    watch.read()
    if not watch.is_done:
        raise DataError(
            f"One of {workers} workers was killed, most often for lack of memory, or could not start. Its last words, "
            f"from {log}:\n{_tail(log)}\nWhat is done is kept: the same command goes on from there; --workers N with a "
            "smaller N needs less memory."
        )


class _Crew:
    """The executor's workers. A pool starts another for one that was killed, and waits for its task for ever.

    At the end of the work, or after an error, workers end as well: then the executor itself does so soon.
    """

    def __init__(self, executor: int) -> None:
        self._executor = psutil.Process(executor)
        self._seen: set[int] = set()
        self._lost_since: float | None = None

    def is_whole(self) -> bool:
        """Whether all are alive that have ever been seen, or one was missed only just now."""
        try:
            alive = {worker.pid for worker in self._executor.children() if worker.status() != psutil.STATUS_ZOMBIE}
        except psutil.NoSuchProcess:
            return True
        if self._lost_since is None and self._seen - alive:
            self._lost_since = time.monotonic()
        self._seen |= alive
        return self._lost_since is None or time.monotonic() - self._lost_since < _SECONDS_TO_END


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the executor and its workers, which die with it; nothing they wrote since their last position is needed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_END)


def _tail(log: Path, *, lines: int = 8) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(
            f"  {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )
    return "  (none)"
