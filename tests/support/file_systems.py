"""File systems that lack something, as the kernel would report it."""

from __future__ import annotations

import errno
import fcntl

import pytest


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `flock` fail as on a file system that does not have it (Lustre as it is often mounted)."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
