"""Local paths that a glob stands for, and what lies below a folder. What cannot be looked into is an error.

Python's `glob` and `rglob` are not used: they pass over folders that may not be read, follow a link to a folder above
again and again (`glob`) or never (`rglob`), and do not say that the target of a link is missing. Text would be left out
or read twice, and nobody would know.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence

from pretrain.errors import DataError

_RECURSIVE = "**"
_NO_SUCH = (FileNotFoundError, NotADirectoryError)


def expand(pattern: str, *, key: str) -> list[str]:
    """Files and folders that a glob matches, sorted; each folder below `**` is entered once, whatever links lead to it.

    As in a shell, names that begin with a dot are matched only by a pattern that begins with one. A pattern that ends
    with `**` stands for files alone, one that ends with `/` for folders alone.

    Args:
        pattern: with `*`, `?`, `[…]` and `**`; one without them stands for itself.
        key: the configuration key, for errors.

    Raises:
        DataError: a folder on the way cannot be listed, or a link leads nowhere.
    """
    if not pattern:
        return []
    root = "/" if pattern.startswith("/") else ""
    parts = [part for part in pattern.split("/") if part]
    found = sorted(set(_matches(root, parts, key=key)))
    return [path for path in found if is_folder(path, key=key)] if pattern.endswith("/") else found


def is_folder(path: str, *, key: str) -> bool:
    """Whether a path is a folder and not a file; links are followed.

    Raises:
        DataError: it is neither, or a link that leads nowhere, or may not be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _cannot_read(path, error, key=key) from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{key}: {path} is neither a file nor a folder. Write its content into a file and list that.")
    return stat.S_ISDIR(mode)


def files_below(folder: str, *, key: str, hidden: tuple[str, ...] = (".",)) -> Iterator[str]:
    """Everything below a folder that is not a folder, each folder entered once; links to folders are followed.

    Args:
        folder: where to begin.
        key: the configuration key, for errors.
        hidden: files and folders whose name begins with one of these are left out.

    Raises:
        DataError: a folder below it cannot be listed, or a link leads nowhere.
    """
    for below, entries in _walk(folder, key=key, hidden=hidden):
        yield from (os.path.join(below, entry.name) for entry in entries if not _is_folder(entry, below, key=key))


def _matches(prefix: str, parts: Sequence[str], *, key: str) -> Iterator[str]:
    """Paths below `prefix` that the parts of a pattern match."""
    if not parts:
        yield prefix
        return
    first, rest = parts[0], parts[1:]
    if first == _RECURSIVE:
        if not rest:
            yield from files_below(prefix, key=key)
        for folder, _ in _walk(prefix, key=key) if rest else ():
            yield from _matches(folder, rest, key=key)
    elif glob.has_magic(first):
        for entry in _entries(prefix, key=key):
            if not fnmatch.fnmatchcase(entry.name, first) or (entry.name.startswith(".") and first[0] != "."):
                continue
            if not rest or _is_folder(entry, prefix, key=key):
                yield from _matches(os.path.join(prefix, entry.name), rest, key=key)
    elif rest or _is_there(os.path.join(prefix, first), key=key):
        yield from _matches(os.path.join(prefix, first), rest, key=key)


def _walk(top: str, *, key: str, hidden: tuple[str, ...] = (".",)) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """A folder and all below it, with their entries. Links come last, so that a folder goes by its own name.

    What tells one folder from another is its real path: numbers of inodes are not unique on every network file system.
    """
    seen: set[str] = set()
    waiting, links = [top], list[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = [entry for entry in _entries(folder, key=key) if not entry.name.startswith(hidden)]
        yield folder, entries
        for entry in reversed(entries):
            if _is_folder(entry, folder, key=key):
                (links if entry.is_symlink() else waiting).append(os.path.join(folder, entry.name))


def _entries(folder: str, *, key: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing of what is no folder."""
    try:
        with os.scandir(folder or ".") as found:
            return sorted(found, key=lambda entry: entry.name)
    except _NO_SUCH as error:
        if os.path.islink(folder):
            raise _cannot_read(folder, error, key=key) from None
        return []
    except OSError as error:
        raise _cannot_read(folder, error, key=key) from None


def _is_folder(entry: os.DirEntry[str], folder: str, *, key: str) -> bool:
    if not entry.is_symlink():
        return entry.is_dir(follow_symlinks=False)
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError as error:
        raise _cannot_read(os.path.join(folder, entry.name), error, key=key) from None


def _is_there(path: str, *, key: str) -> bool:
    try:
        os.lstat(path)
    except _NO_SUCH as error:
        folder = os.path.dirname(path)
        if os.path.islink(folder) and not os.path.exists(folder):
            raise _cannot_read(folder, error, key=key) from None
        return False
    except OSError as error:
        raise _cannot_read(path, error, key=key) from None
    return True


def _cannot_read(path: str, error: OSError, *, key: str) -> DataError:
    if os.path.islink(path) and (isinstance(error, _NO_SUCH) or error.errno == errno.ELOOP):
        why = "does not exist" if error.errno != errno.ELOOP else "leads back to the link"
        return DataError(
            f"{key}: {path} is a link to {os.readlink(path)}, which {why}, so its text would be left out. Bring the "
            "target back, or list files or a glob that do not include the link."
        )
    if isinstance(error, PermissionError):
        return DataError(
            f"{key}: {path or '.'} may not be read by this user, so text in it would be left out. Give the user access "
            "to it, or list files or a glob that do not include it."
        )
    return DataError(f"{key}: {path or '.'} cannot be read: {error.strerror or error}.")
