"""Locks between processes of one run: the store's, the watcher's and training's.

All are flocks, which end with the process however it ends. On a file system without them changes are made
unlocked, as long as only one process makes any; a watcher, which makes a second one, refuses to start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pretrain.errors import ProbeError

WATCH_LOCK = ".watch.lock"
TRAINING_LOCK = ".training.lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same path.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        yield
    finally:
        os.close(descriptor)  # releases it; the file stays, or two processes could hold two files of one name


class Held:
    """A lock held until `release`, or until the process ends.

    Args:
        path: the file; it names its holder.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        self._path = path

    def take(self) -> bool:
        """Whether it could be had; at once, without waiting.

        Raises:
            ProbeError: the file system has no locks, or the file cannot be made.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            raise ProbeError(
                f"{self._path} cannot be locked: {error}. Put the run on a file system with flock (Lustre: mount "
                f"with -o flock)."
            ) from error
        self._descriptor = descriptor
        return True

    def holder(self) -> str:
        """Who has it, as that process wrote."""
        with contextlib.suppress(OSError):
            return self._path.read_text(encoding="utf-8", errors="replace").strip() or "a process"
        return "a process"

    def release(self) -> None:
        """Lets go; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        """Lets go where nobody refers to it any more, as after a run of a sweep."""
        self.release()
