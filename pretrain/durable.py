"""Files and folders that appear complete or not at all, and that survive a crash of the machine.

Every file that a run or a command rewrites as a whole goes through here: it is written under a temporary name in the
same folder, made durable (`fsync`), and renamed over the old one. Files that only grow (`metrics.jsonl`,
`probes.jsonl`, shards of tokens) are not written here; their readers know how to drop a torn last line.

What a killed process leaves is a hidden name that ends in `.tmp` (`.config.yaml~PROCESS.tmp`). No reader takes it
for content, and it may be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from pretrain.locks import has_ended, process_name


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file as a whole: after a crash there is the old content or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        content: what it will hold; text is written as UTF-8.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`. What the block writes there replaces `path` when the block ends.

    A block that raises leaves the old file as it was. Where `path` is a symbolic link, the file that it points to is
    replaced. A pipe or a device such as `/dev/stdout` cannot be replaced, so the block is given `path` itself.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = _beside(path)
    try:
        yield temporary
        sync(temporary)
        rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty temporary folder beside `folder`. When the block ends, it takes the place of `folder`.

    The temporary folder must hold files only. A block that raises leaves the old folder as it was. A kill between the
    two renames leaves no folder of this name; the old content is then beside it, under a hidden name. What earlier
    processes of this machine left is removed.

    Raises:
        OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    temporary, old = _beside(folder), _beside(folder, ending=".old")
    _remove_left(folder, ending=".tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if folder.exists():
            folder.rename(old)
        rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
        _remove_left(folder, ending=".old")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def rename(source: Path, target: Path) -> None:
    """Renames within one folder, durably. A file at `target` is replaced; a folder there must be empty."""
    os.rename(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Makes a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so; the names are then as durable as they allow.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _beside(path: Path, *, ending: str = ".tmp") -> Path:
    """A hidden name in the same folder that no other process or thread uses."""
    return path.with_name(f".{path.name}~{process_name()}-{threading.get_ident()}{ending}")


def _remove_left(folder: Path, *, ending: str) -> None:
    prefix = f".{folder.name}~"
    names = os.listdir(folder.parent) if folder.parent.exists() else []
    for name in names:
        process = name.removeprefix(prefix).rpartition("-")[0]
        if name.startswith(prefix) and name.endswith(ending) and has_ended(process):
            shutil.rmtree(folder.with_name(name), ignore_errors=True)
