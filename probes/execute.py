"""Runs programs that a model wrote, and says which of them pass their tests: a stand-in for `code_eval`.

A program runs in a process, session and empty folder of its own, with hardly any environment, and with limits on
time, memory, files and (for users other than root) processes. That keeps mistakes of a language model from harming
the run: endless loops, memory without end, stray files. It is no prison: nothing cuts off the network, and files
that this user may write stay writable. Hence `probe.allow_code_execution`, off unless asked for.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path
from typing import TypeVar

WALL_SECONDS = 10.0
CPU_SECONDS = 3
MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
_WORKERS = 4
_POLL_SECONDS = 0.005

# The secret comes by standard input and goes to a file once all tests have passed: a program that ends itself before
# its tests, even by os._exit(0), has not passed.
_LAUNCHER = """
import os, resource, sys
secret = sys.stdin.read()
for name, limit in {limits}:
    resource.setrlimit(getattr(resource, name), (limit, limit))
with open("program.py", encoding="utf-8") as file:
    source = file.read()
try:
    exec(compile(source, "program.py", "exec"), {{"__name__": "__main__"}})
except BaseException:
    os._exit(1)
with open("passed", "w", encoding="utf-8") as file:
    file.write(secret)
os._exit(0)
"""

T = TypeVar("T")


class _Recorder:
    """Answers which programs pass: nothing runs until all of them are known, then several at once."""

    def __init__(self) -> None:
        self.results: dict[str, bool] = {}
        self.wanted: dict[str, None] = {}

    def passes(self, program: str) -> bool:
        self.wanted[program] = None
        return self.results.get(program, False)

    def run(self) -> None:
        with ThreadPoolExecutor(_WORKERS) as pool:
            self.results = dict(zip(self.wanted, pool.map(passes, self.wanted), strict=True))


_active: list[_Recorder] = []


def with_programs(work: Callable[[], T]) -> T:
    """Calls `work` twice: what it asks `code_eval` about is recorded, run, and answered the second time."""
    recorder = _Recorder()
    _active.append(recorder)
    try:
        work()
        recorder.run()
        return work()
    finally:
        _active.pop()


def code_eval(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """pass@k as `evaluate`'s `code_eval` defines it; no program has passed outside `with_programs`.

    Args:
        references: a test for each problem.
        predictions: candidate programs of each problem; the test is appended.
        k: as many candidates may be tried.
    """
    counts = []
    for test, candidates in zip(references, predictions, strict=True):
        passed = sum(bool(_active) and _active[-1].passes(f"{candidate}\n{test}") for candidate in candidates)
        counts.append((len(candidates), passed))
    return {
        f"pass@{number}": sum(1 - comb(total - passed, number) / comb(total, number) for total, passed in counts)
        / len(counts)
        for number in k
        if counts and all(total >= number for total, _ in counts)
    }


def passes(program: str, *, wall_seconds: float = WALL_SECONDS) -> bool:
    """Whether a program runs to its end without an exception, within the limits."""
    limits = [
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", CPU_SECONDS),
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_FSIZE", FILE_BYTES),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_NPROC", 0),
    ]
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="fineline-program-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "program.py").write_text(program, encoding="utf-8", errors="replace")
        with _started(_LAUNCHER.format(limits=limits), secret, folder) as process:
            deadline = time.monotonic() + wall_seconds
            while _runs(process) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        with contextlib.suppress(OSError), (Path(folder) / "passed").open("rb") as file:
            return file.read(64) == secret.encode()
    return False


@contextlib.contextmanager
def _started(launcher: str, secret: str, folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which with everything of its group is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", launcher],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(secret.encode())
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # not reaped yet, so the number is still this group's
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has not ended; it is not reaped."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
