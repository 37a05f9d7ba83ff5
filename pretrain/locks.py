"""Locks between processes, on any file system: one holder at a time, and a lock ends with its holder.

`flock` is used where the file system has it; the kernel releases it when the holder ends, however it ends. Where it
is missing (Lustre as it is often mounted), the holder makes a claim: a file that names the holder and that it touches
every few seconds. A claim of a process of this machine that has ended is taken over at once; a claim of another
machine is taken over when nobody has touched it for a minute, by the waiting process's clock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TOUCH_SECONDS = 5.0
_STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_HOLDER = re.compile(rb"(\d+\.\d+\.\S+\n)?")
"""What a lock file holds: the name of a process, as `process_name` gives it, or nothing yet."""


@contextlib.contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of a path for as long as the block runs, after waiting for it if need be.

    Args:
        path: the lock file. It is made if it is missing, and it stays.
        on_wait: called once if another process holds the lock.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    release = _take(path, waits=True, on_wait=on_wait)
    assert release is not None, "waited for"
    try:
        yield
    finally:
        release()


class Held:
    """A lock that is held until `release`, or until the process ends.

    Args:
        path: the lock file; it names the holder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._release: weakref.finalize | None = None

    def take(self) -> bool:
        """Takes the lock unless another process holds it; returns whether it was taken.

        With flock the answer comes at once. Without it, a claim of another machine is watched until it is touched,
        which takes a few seconds, or a minute if its holder is gone.

        Raises:
            OSError: the folder is missing or cannot be written.
        """
        release = _take(self._path, waits=False)
        if release is not None:
            self._release = weakref.finalize(self, release)
        return release is not None

    def holder(self) -> str:
        """The process that holds the lock, as it wrote itself down."""
        for path in (_claim_path(self._path), self._path):
            with contextlib.suppress(OSError):
                process, *_ = path.read_text(encoding="utf-8", errors="replace").split() or [""]
                number, _, place = process.partition(".")
                if number.isdecimal():
                    return f"process {number} on {place.partition('.')[2]}"
        return "a process"

    def release(self) -> None:
        """Lets go of the lock; a second call does nothing."""
        if self._release is not None:
            self._release()


def process_name() -> str:
    """Names this process among those of all machines, as NUMBER.NAMESPACE.HOST; it can be part of a file's name."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # two containers may share a host name, not a namespace
    except OSError:
        namespace = 0
    return f"{os.getpid()}.{namespace}.{socket.gethostname()}"


def has_ended(process: str) -> bool:
    """Whether a process of this machine, as `process_name` named it, has ended; False if it is of another machine."""
    number, _, place = process.partition(".")
    if place != process_name().partition(".")[2] or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _take(path: Path, *, waits: bool, on_wait: Callable[[], None] = lambda: None) -> Callable[[], None] | None:
    """Takes a lock and returns what releases it; None if another process holds it and `waits` is False."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                os.close(descriptor)
                return None
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _HOLDER.fullmatch(os.pread(descriptor, 512, 0)):  # a user's file of this name keeps its content
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{process_name()}\n".encode(), 0)
    except BaseException as error:
        os.close(descriptor)
        if not isinstance(error, OSError) or error.errno not in _NO_FLOCK:
            raise
        return _take_claim(_claim_path(path), waits=waits, on_wait=on_wait)
    return functools.partial(os.close, descriptor)  # the file stays, or two processes could lock two files of one name


# Claims: what is done without flock


def _claim_path(path: Path) -> Path:
    return path.with_name(path.name + ".claim")


def _take_claim(path: Path, *, waits: bool, on_wait: Callable[[], None]) -> Callable[[], None] | None:
    owner = f"{process_name()} {threading.get_ident()} {time.time_ns()}"
    has_waited = False
    while not _create(path, owner):
        if waits and not has_waited:
            has_waited = True
            on_wait()
        claim = _read(path)
        if _is_abandoned(path, claim):
            _take_away(path, claim[0])
        elif not waits and _read(path)[0] == claim[0]:
            return None
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beating.start()
    return functools.partial(_release_claim, path, owner, done, beating)


def _release_claim(path: Path, owner: str, done: threading.Event, beating: threading.Thread) -> None:
    if not owner.startswith(f"{process_name()} "):
        return  # a forked child has a copy of its parent's lock, which is not its own to release
    done.set()
    beating.join()
    if _read(path)[0] == owner:
        path.unlink(missing_ok=True)


def _is_abandoned(path: Path, claim: tuple[str, int]) -> bool:
    """Watches a claim until its holder touches it or lets go of it (False), or must be gone (True)."""
    since = time.monotonic()
    while _read(path) == claim:
        if has_ended(claim[0].partition(" ")[0]) or time.monotonic() - since > _STALE_SECONDS:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _create(path: Path, owner: str) -> bool:
    """Makes the claim unless there is one. It appears with its content: it is linked to a complete file."""
    complete = path.with_name(f"{path.name}-{owner.replace(' ', '-')}")
    complete.write_text(owner, encoding="utf-8")
    try:
        os.link(complete, path)
    except FileExistsError:
        return False
    finally:
        complete.unlink(missing_ok=True)
    return True


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):  # the folder may be gone for a moment: the next beat will do
            os.utime(path)


def _read(path: Path) -> tuple[str, int]:
    """Owner and time of the last beat; empty and 0 where there is no claim."""
    try:
        return path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
    except OSError:
        return "", 0


def _take_away(path: Path, owner: str) -> None:
    """Removes a claim, and only that one: another process may have taken it over meanwhile."""
    aside = path.with_name(f"{path.name}-stale-{process_name()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):
        if _read(path)[0] == owner:
            os.rename(path, aside)
            if _read(aside)[0] != owner:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path)
            aside.unlink(missing_ok=True)
