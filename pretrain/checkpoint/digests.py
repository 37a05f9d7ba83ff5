"""`SHA256SUMS` of a published folder, in the form of `sha256sum`: what every file was when it was written.

The card is left out, because scores are added to it later; so are names that begin with a dot.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from pretrain.errors import CheckpointError
from pretrain.places import names_besides

DIGESTS_NAME = "SHA256SUMS"
CARD_NAME = "README.md"
_AGAIN = (
    "The machine or its disk probably failed while the release was written. Move the folder away and release it again."
)


def write_digests(folder: Path) -> None:
    """Puts the digests of all files there are into the folder."""
    names = sorted(path.name for path in published_files(folder) if path.name not in (DIGESTS_NAME, CARD_NAME))
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / DIGESTS_NAME).write_text("".join(lines), encoding="utf-8")


def read_digests(folder: Path) -> dict[str, str]:
    """The digest of each file when it was written.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    path = folder / DIGESTS_NAME
    try:
        entries = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        digests = {name: digest for digest, name in entries}
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a release of this program: it has no {DIGESTS_NAME}. Release into another folder (--out) "
            "or under another name (--name, checkpoint.export_name)."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). {_AGAIN}") from error
    if not digests:
        raise CheckpointError(f"{path} is empty. {_AGAIN}")
    return digests


def damage_in_release(folder: Path) -> str | None:
    """Reads every byte of a published folder.

    Returns:
        What is wrong, naming the file; None where all of it is as it was written.

    Raises:
        CheckpointError: the folder has no digests.
    """
    for name, digest in read_digests(folder).items():
        try:
            if sha256_of(folder / name) != digest:
                return f"{folder / name} is not what was written: its digest differs from {DIGESTS_NAME}"
        except OSError as error:
            return f"{folder / name}: {error.strerror}"
    return None


def not_of_a_release(folder: Path) -> list[str]:
    """Names in a folder that an export would destroy though no export wrote them; none if it may be replaced."""
    ours: set[str] = set()
    if folder.is_dir():
        with contextlib.suppress(CheckpointError):
            ours = {*read_digests(folder), DIGESTS_NAME, CARD_NAME}
    return [name for name in names_besides(folder, ours) if not name.startswith(".")]


def published_files(folder: Path) -> list[Path]:
    """The files of a folder that are published, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def sha256_of(path: Path) -> str:
    """Digest of a file's contents, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
