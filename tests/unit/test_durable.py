"""Files and folders are replaced as a whole, whatever ends the process that writes them."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretrain.durable import replace_file, replacing, replacing_folder

NAMES = ("open", "fsync", "rename", "mkdir", "rmdir", "unlink")
"""Calls of `os` that a replacement makes."""


def _killed_at(number: int, work: Callable[[], None]) -> bool:
    """Runs work in a forked process that is killed at its number-th call; returns whether it came to that."""
    child = os.fork()
    if child == 0:
        count = itertools.count(1)

        def deadly(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                if next(count) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in NAMES:
            setattr(os, name, deadly(getattr(os, name)))
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _kills(work: Callable[[], None]) -> Iterator[int]:
    """Kills work at every call, one after another."""
    for number in itertools.count(1):
        is_killed = _killed_at(number, work)
        yield number
        if not is_killed:
            return


def test_a_file_has_the_old_content_or_the_new_one_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    found = []
    replace_file(path, "old")
    for _ in _kills(lambda: replace_file(path, "new" * 1000)):
        found.append(path.read_text())
        left = [name for name in os.listdir(tmp_path) if name != path.name]
        assert all(name.startswith(".config.yaml~") and name.endswith(".tmp") for name in left)
        path.write_text("old")
    assert set(found) == {"old", "new" * 1000} and len(found) > 3


def test_a_folder_is_whole_or_absent_wherever_the_writer_is_killed_and_the_next_call_removes_what_is_left(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "plan"

    def write(text: str) -> None:
        with replacing_folder(folder) as temporary:
            for name in ("a", "b"):
                (temporary / name).write_text(text)

    write("old")
    for _ in _kills(lambda: write("new")):
        texts = {path.read_text() for path in folder.iterdir()} if folder.exists() else {"absent"}
        assert texts in ({"old"}, {"new"}, {"absent"})
        if texts == {"absent"}:
            (old,) = tmp_path.glob(".plan~*.old")
            assert {path.read_text() for path in old.iterdir()} == {"old"}
        write("old")
        assert os.listdir(tmp_path) == ["plan"] and {path.read_text() for path in folder.iterdir()} == {"old"}


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as temporary:
        (temporary / "a").write_text("new")
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert path.read_text() == (folder / "a").read_text() == "old"


def test_writers_of_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = {letter * 100_000 for letter in "abcd"}

    def write(text: str) -> None:
        for _ in range(20):
            replace_file(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_a_symbolic_link_stays_and_a_pipe_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    replace_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, "through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)


def test_a_new_file_can_be_read_by_those_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("place", ["missing/file", "folder"])
def test_what_cannot_be_replaced_is_an_error_of_the_file_system(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace_file(tmp_path / place, "text")


def test_no_other_module_renames_files_or_syncs_them_by_itself() -> None:
    """Files that grow are synced where they are written; what is replaced goes through `pretrain.durable`."""
    grows = {"pretrain/data/shard_writer.py", "pretrain/track/jsonl.py", "probes/store.py", "probes/journal.py"}
    own = re.compile(r"os\.(replace|rename)\(|\.rename\(|os\.fsync\(")
    root = Path(__file__).parents[2]
    found = {
        str(path.relative_to(root))
        for package in ("pretrain", "probes")
        for path in (root / package).rglob("*.py")
        if own.search(path.read_text(encoding="utf-8"))
    }
    assert found - grows == {"pretrain/durable.py", "pretrain/locks.py", "pretrain/checkpoint/huggingface.py"}
