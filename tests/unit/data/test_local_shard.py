"""Files that change while they are read: what is noticed, and that the error names file, byte and remedy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.local_shard import LocalFile, OpenFiles
from pretrain.errors import DataError

CONTENT = np.arange(1000, dtype=np.uint8).tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "00000.train.bin"
    path.write_bytes(CONTENT)
    return path


def rewrite(path: Path) -> None:
    """Other bytes of the same number, in place."""
    with path.open("r+b") as stream:
        stream.write(b"x")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # two writes can fall into one tick of the kernel's clock


def replace(path: Path) -> None:
    (path.parent / "other").write_bytes(CONTENT)
    (path.parent / "other").replace(path)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "deleted": (Path.unlink, "was deleted or replaced during the run"),
    "replaced": (replace, "was deleted or replaced during the run"),
    "rewritten": (rewrite, "changed during the run: it was written to at "),
    "longer": (append, "changed during the run: it had 1000 bytes and ends at byte 1004 now"),
    "shorter": (lambda path: os.truncate(path, 900), "changed during the run: it had 1000 bytes and ends at byte 900"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_an_error_at_its_next_use(change: str, path: Path) -> None:
    file = LocalFile(str(path))
    assert file.read(10, 5) == CONTENT[10:15]
    act, said = CHANGES[change]
    act(path)
    with pytest.raises(DataError) as caught:
        file.read(10, 5)
    assert str(caught.value).startswith(f"{path} {said}")
    assert "start the run again: it goes on at its last save" in str(caught.value)


@pytest.mark.parametrize("change", ["deleted", "replaced", "rewritten"])
def test_so_it_is_when_the_file_was_closed_in_between(change: str, path: Path) -> None:
    files = OpenFiles(1)
    file = LocalFile(str(path), files)
    file.read(0, 1)
    files.forget()
    CHANGES[change][0](path)
    with pytest.raises(DataError, match=r"(was deleted|was replaced by another file|changed) during the run"):
        file.read(0, 1)


def test_a_read_beyond_the_end_names_the_byte(path: Path) -> None:
    file = LocalFile(str(path))
    file.read(0, 1)
    os.truncate(path, 900)
    with pytest.raises(DataError, match=r"00000.train.bin ends at byte 900: bytes 850 to 950 were wanted. It had 1000"):
        file.read_into([(0, memoryview(bytearray(10))), (850, memoryview(bytearray(100)))])


def test_reads_of_zero_bytes_at_the_end_are_nothing(path: Path) -> None:
    assert LocalFile(str(path)).read(1000, 0) == b""


def test_a_new_reader_takes_a_replaced_file_as_it_is(path: Path) -> None:
    LocalFile(str(path)).read(0, 1)
    replace(path)
    assert LocalFile(str(path)).read(0, 1) == CONTENT[:1]


def test_threads_read_while_their_files_are_closed_for_others(tmp_path: Path) -> None:
    """A descriptor's number is given to the next file that is opened: none may be read under another's name."""
    files = OpenFiles(2)
    paths = [tmp_path / str(number) for number in range(8)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    readers = [LocalFile(str(path), files) for path in paths]
    wrong: list[object] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            numbers = rng.integers(0, 8, size=2000)
            wrong.extend(n for n in numbers if readers[n].read(3, 50) != bytes([n]) * 50)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_files_of_others_that_fill_the_process_make_it_close_its_own(path: Path) -> None:
    import errno

    files = OpenFiles(4)
    kept = LocalFile(str(path), files)
    kept.read(0, 1)
    real, failures = os.open, [OSError(errno.EMFILE, "Too many open files")]

    def once_full(*arguments: object, **options: object) -> int:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)  # type: ignore[arg-type]

    os.open = once_full  # type: ignore[assignment]
    try:
        assert LocalFile(str(path), files).read(0, 2) == CONTENT[:2]
    finally:
        os.open = real
    assert not failures
