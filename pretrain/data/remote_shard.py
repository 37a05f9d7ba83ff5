"""Files of tokens behind an fsspec address (`s3://…`, `msc://…`): ranges, many at a time.

An object store answers after tens of milliseconds, whatever the length; so what a batch needs is asked for at once.
Objects are replaced as a whole: one that has another size, tag or time than at its first use is an error, looked for
again every few minutes of use, because each look costs a request.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from pretrain.data.files import file_system
from pretrain.errors import DataError

_AT_ONCE = 32
_LOOK_SECONDS = 300.0
_INDEX_BYTES = 1 << 28
_IDENTITY = ("size", "ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")
_REMEDY = (
    "Objects of tokens must not change while a run reads them. Put the object back (or prepare anew, in another "
    "folder), and start the run again: it goes on at its last save."
)


class RemoteFile:
    """One object. Making it asks for nothing.

    Args:
        path: its fsspec address.

    Raises:
        DataError: an unknown protocol, or the package that speaks it is not installed.
    """

    __slots__ = ("_first", "_looked", "file_system", "inner", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.file_system, self.inner = file_system(path, key="data.prepared_dir")
        self._first: dict[str, Any] | None = None
        self._looked = 0.0

    def size(self) -> int:
        """Bytes in the object; see `ShardBytes`."""
        return int(self.look()["size"])

    def look(self) -> dict[str, Any]:
        """Asks for size, tag and times of the object, and compares them with those of the first time.

        Raises:
            DataError: it is gone, cannot be read, or was replaced.
        """

        def ask() -> dict[str, Any]:
            self.file_system.invalidate_cache(self.inner)
            found: dict[str, Any] = self.file_system.info(self.inner)
            return found

        info = self._ask(ask, 0)
        found = {key: info[key] for key in _IDENTITY if info.get(key) is not None}
        if self._first is None:
            self._first = found
        for key, value in self._first.items():
            if found.get(key) != value:
                raise DataError(
                    f"{self.path} was replaced during the run: its {key} was {value} and is {found.get(key)} now. "
                    f"{_REMEDY}"
                )
        self._looked = time.monotonic()
        return found

    @property
    def is_look_due(self) -> bool:
        """Whether it is time to look for a change again."""
        return self._first is not None and time.monotonic() - self._looked > _LOOK_SECONDS

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from an offset on; see `ShardBytes`."""
        if not length:
            return b""
        got = self._ask(lambda: self.file_system.cat_file(self.inner, start=offset, end=offset + length), offset)
        return self.checked(got, offset, length)

    def checked(self, got: bytes | BaseException, offset: int, length: int) -> bytes:
        """What a request for a range gave, if it is the whole range.

        Raises:
            DataError: it is not.
        """
        if isinstance(got, BaseException):
            raise self._unreadable(got, offset) from None
        if len(got) != length:
            was = "" if self._first is None else f" It had {self._first['size']} bytes when it was first read."
            raise DataError(
                f"{self.path} ends at byte {offset + len(got)}: bytes {offset} to {offset + length} were wanted.{was} "
                f"{_REMEDY}"
            )
        return got

    def _ask(self, request: Callable[[], Any], offset: int) -> Any:
        try:
            return request()
        except Exception as error:  # noqa: BLE001 - each store's package has errors of its own; named below
            raise self._unreadable(error, offset) from None

    def _unreadable(self, error: BaseException, offset: int) -> DataError:
        if isinstance(error, DataError):
            return error
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, FileNotFoundError):
            if self._first is None:
                return DataError(f"{self.path} does not exist; the prepared data is incomplete.")
            return DataError(f"{self.path} was deleted during the run. {_REMEDY}")
        return DataError(
            f"{self.path} cannot be read at byte {offset} ({said}). See whether the store answers and the credentials "
            "hold, and start the run again: it goes on at its last save."
        )


class WholeFile:
    """An object that is fetched once and then read from memory: an index.

    Attributes:
        path: its address.
    """

    __slots__ = ("_content", "path")

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self._content = path, content

    def size(self) -> int:
        """Bytes in the object."""
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from an offset on."""
        return self._content[offset : offset + length]


class _Indexes:
    """The indexes used last; at most 256 MB of them, or a single larger one."""

    def __init__(self) -> None:
        self._files: OrderedDict[RemoteFile, WholeFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: RemoteFile) -> WholeFile:
        """The index, fetched where it is not held."""
        with self._lock:
            if file in self._files:
                self._files.move_to_end(file)
                return self._files[file]
        whole = WholeFile(file.path, file.read(0, file.size()))
        with self._lock:
            self._files[file] = whole
            while len(self._files) > 1 and sum(one.size() for one in self._files.values()) > _INDEX_BYTES:
                self._files.popitem(last=False)
        return whole


INDEXES = _Indexes()
"""Of this process."""


@lru_cache(maxsize=1)
def pool() -> ThreadPoolExecutor:
    """Threads that wait for answers."""
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="remote-shards")


def read_ranges(wanted: Sequence[tuple[RemoteFile, int, int]]) -> list[bytes]:
    """Ranges (file, offset, length) of many objects, asked for together.

    Raises:
        DataError: one cannot be read, is short, or belongs to an object that was replaced.
    """
    list(pool().map(RemoteFile.look, {id(f): f for f, *_ in wanted if f.is_look_due}.values()))
    out: list[bytes] = [b""] * len(wanted)
    for group in _by_file_system(wanted):
        parts = [wanted[index] for index in group]
        fs = parts[0][0].file_system
        if getattr(fs, "async_impl", False):
            try:
                answers = fs.cat_ranges(
                    [file.inner for file, *_ in parts],
                    [offset for _, offset, _ in parts],
                    [offset + length for _, offset, length in parts],
                    on_error="return",
                )
            except Exception as error:  # noqa: BLE001 - as in RemoteFile
                answers = [error] * len(parts)
            for index, (file, offset, length), got in zip(group, parts, answers, strict=True):
                out[index] = file.checked(got, offset, length)
        else:  # fsspec's own answer to many ranges is one after the other
            for index, got in zip(group, pool().map(lambda part: part[0].read(*part[1:]), parts), strict=True):
                out[index] = got
    return out


def _by_file_system(wanted: Sequence[tuple[RemoteFile, int, int]]) -> Iterable[list[int]]:
    groups: dict[Any, list[int]] = {}
    for index, (file, *_) in enumerate(wanted):
        groups.setdefault(file.file_system, []).append(index)
    return groups.values()
