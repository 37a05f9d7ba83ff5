"""One process at a time: a lock that ends with its holder, on any file system.

`flock` where there is one; the kernel releases it when the holder dies, so none is ever stale. Where there is none
(Lustre as it is often mounted), a claim: a file that its holder touches every few seconds. A claim that nobody has
touched for a minute, by the waiting process's clock, is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TOUCH_SECONDS = 5.0
_STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5


@contextlib.contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock on a path for as long as the block runs, after waiting for it if need be.

    Args:
        path: made if missing, and left there: it must not be a file with content.
        on_wait: called once where another process holds it.

    Raises:
        OSError: the folder is gone or may not be written.
    """
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            with _claim(path.with_name(path.name + ".claim"), on_wait):
                yield
            return
        yield


@contextlib.contextmanager
def _claim(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    owner = f"{socket.gethostname()} {os.getpid()} {threading.get_ident()} {time.time_ns()}"
    has_waited = False
    seen, since = "", time.monotonic()
    while not _create(path, owner):
        if not has_waited:
            has_waited = True
            on_wait()
        found, beat = _read(path)
        if f"{found} {beat}" != seen:
            seen, since = f"{found} {beat}", time.monotonic()
        elif _is_dead(found) or time.monotonic() - since > _STALE_SECONDS:
            _take_away(path, found)
            continue
        if _is_dead(found):
            continue  # looked at twice, in case it is only being written
        time.sleep(_POLL_SECONDS)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        if _read(path)[0] == owner:
            path.unlink(missing_ok=True)


def _create(path: Path, owner: str) -> bool:
    """A claim appears with its content: a link to a complete file is made by one process only."""
    own = path.with_name(f"{path.name}-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
    own.write_text(owner)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    finally:
        own.unlink(missing_ok=True)
    return True


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):  # the folder may be gone for a moment: the next beat will do
            os.utime(path)


def _read(path: Path) -> tuple[str, int]:
    """Owner and time of the last beat, both empty where there is no claim."""
    try:
        return path.read_text(), path.stat().st_mtime_ns
    except OSError:
        return "", 0


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    parts = owner.split()
    if len(parts) != 4 or parts[0] != socket.gethostname():
        return False
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _take_away(path: Path, owner: str) -> None:
    """Removes a claim, and only that one: another process may have taken it over meanwhile."""
    aside = path.with_name(f"{path.name}-stale-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):
        if _read(path)[0] == owner:
            os.rename(path, aside)
            if _read(aside)[0] != owner:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path)
            aside.unlink(missing_ok=True)
