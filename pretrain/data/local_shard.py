"""A file of tokens on a file system: opened when it is used, read by position, watched for changes.

Files are not mapped: where a mapped file is cut short, the process dies of SIGBUS without a word. A file descriptor
belongs to the process, so all streams share one bounded set of open files; at a terabyte there are 40,000 files.

What is noticed: each use compares size and modification time with those of the first use, and whether the file was
deleted or replaced (no name left); an evicted file that is opened again must be the same inode. On NFS changes by
other machines show when the client's attribute cache runs out (3 to 60 s by default), a deletion as ESTALE.
"""

from __future__ import annotations

import datetime
import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable

from pretrain.errors import DataError

_REMEDY = (
    "Files of tokens must not change while a run reads them. Check the folder with `python -m pretrain.data check`, "
    "put the file back (or prepare anew, in another folder), and start the run again: it goes on at its last save."
)
_MOST_OPEN = 1024


class _OpenFile:
    """A file descriptor that lives as long as somebody holds this."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class OpenFiles:
    """The files used last, open. Safe to share by threads: one that is evicted stays open until nobody reads it.

    Args:
        most: files open at a time, beside those in use at the moment.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.RLock()  # a garbage collection within may drop a file

    def get(self, owner: int, path: str) -> _OpenFile:
        """The open file of an owner, who has one at most.

        Raises:
            OSError: it cannot be opened.
        """
        with self._lock:
            known = self._files.get(owner)
            if known is not None:
                self._files.move_to_end(owner)
                return known
        try:
            file = _OpenFile(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.forget()  # others took what this process may open
            file = _OpenFile(path)
        with self._lock:
            self._files[owner] = file
            while len(self._files) > self.most:
                self._files.popitem(last=False)
        return file

    def drop(self, owner: int) -> None:
        """Closes the file of an owner that is no more."""
        with self._lock:
            self._files.pop(owner, None)

    def forget(self) -> None:
        """Closes all that is not being read."""
        with self._lock:
            self._files.clear()


def _allowed() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(16, min(_MOST_OPEN, soft // 4))


OPEN_FILES = OpenFiles(_allowed())
"""Of this process: a quarter of what it may open, at most."""


class LocalFile:
    """One file on a file system. Its size, modification time and inode at the first use are what it must keep.

    Args:
        path: the file.
        files: where open files are kept.
    """

    __slots__ = ("_files", "_first", "path")

    def __init__(self, path: str, files: OpenFiles = OPEN_FILES) -> None:
        self.path = path
        self._files = files
        self._first: os.stat_result | None = None

    def __del__(self) -> None:
        self._files.drop(id(self))

    def size(self) -> int:
        """Bytes in the file; see `ShardBytes`."""
        return self._look(self._open()).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from an offset on; see `ShardBytes`."""
        file = self._open()
        try:
            out = os.pread(file.descriptor, length, offset)
        except OSError as error:
            raise self._unreadable(error, offset) from None
        if len(out) != length:
            rest = bytearray(length - len(out))
            self._read_rest(file.descriptor, offset + len(out), memoryview(rest))
            out += rest
        self._look(file)
        return out

    def read_into(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Fills each buffer of bytes from its offset on, then looks whether the file changed meanwhile.

        Raises:
            DataError: the file cannot be read, ends before, or is not what it was; names the byte offset.
        """
        file = self._open()
        descriptor, offset = file.descriptor, 0
        try:
            for offset, buffer in pieces:
                if os.preadv(descriptor, (buffer,), offset) != len(buffer):
                    self._read_rest(descriptor, offset, buffer)
        except OSError as error:
            raise self._unreadable(error, offset) from None
        self._look(file)

    def _read_rest(self, descriptor: int, offset: int, buffer: memoryview) -> None:
        """A read may be short for other reasons than the file's end: goes on until nothing comes."""
        done = 0
        while done < len(buffer):
            got = os.preadv(descriptor, (buffer[done:],), offset + done)
            if got == 0:
                was = "" if self._first is None else f" It had {self._first.st_size} bytes when it was opened."
                raise DataError(
                    f"{self.path} ends at byte {offset + done}: bytes {offset} to {offset + len(buffer)} were "
                    f"wanted.{was} {_REMEDY}"
                )
            done += got

    def _open(self) -> _OpenFile:
        try:
            return self._files.get(id(self), self.path)
        except OSError as error:
            if self._first is not None and error.errno == errno.ENOENT:
                raise DataError(f"{self.path} was deleted during the run. {_REMEDY}") from None
            raise DataError(
                f"{self.path} cannot be read ({error.strerror}); the prepared data is incomplete."
            ) from None

    def _look(self, file: _OpenFile) -> os.stat_result:
        try:
            found = os.fstat(file.descriptor)
        except OSError as error:
            raise self._unreadable(error, 0) from None
        first = self._first
        if first is None:
            self._first = first = found
        if found.st_nlink == 0:
            raise DataError(f"{self.path} was deleted or replaced during the run. {_REMEDY}")
        if found.st_ino != first.st_ino:
            raise DataError(f"{self.path} was replaced by another file during the run. {_REMEDY}")
        if found.st_size != first.st_size:
            raise DataError(
                f"{self.path} changed during the run: it had {first.st_size} bytes and ends at byte {found.st_size} "
                f"now. {_REMEDY}"
            )
        if found.st_mtime_ns != first.st_mtime_ns:
            raise DataError(
                f"{self.path} changed during the run: it was written to at {_time(found)}; when it was opened the last "
                f"change was at {_time(first)}. {_REMEDY}"
            )
        return found

    def _unreadable(self, error: OSError, offset: int) -> DataError:
        if error.errno == errno.ESTALE:
            return DataError(f"{self.path} was deleted or replaced on the file server during the run. {_REMEDY}")
        return DataError(
            f"{self.path} cannot be read at byte {offset}: {error.strerror}. See whether the storage is well, and "
            "start the run again: it goes on at its last save."
        )


def _time(found: os.stat_result) -> str:
    return datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC).isoformat(timespec="milliseconds")
