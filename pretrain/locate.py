"""Where things lie in a run directory, and what a path names that a user wrote.

Users name whichever is at hand: a run directory, its folder of checkpoints, or one checkpoint. Commands accept all of
them. Paths only: `pretrain.directory` says what the files mean, `pretrain.checkpoint.reader` which checkpoint is whole.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pretrain.errors import ConfigError

CONFIG_NAME = "config.yaml"
CHECKPOINTS = "checkpoints"
EXPORTS = "export"


def run_of(path: Path) -> Path:
    """The run directory that a path names: itself, or the run of a folder of checkpoints or of one checkpoint.

    Any other path is returned as it is: the caller says what a run directory should hold.
    """
    if (path / CONFIG_NAME).is_file():
        return path
    for written in (path, Path(os.path.abspath(path))):  # "." may be a folder of checkpoints, too
        for folder in (written, written.parent):
            if folder.name == CHECKPOINTS:
                return folder.parent
    return path


def checkpoints_of(path: Path) -> Path:
    """The folder of checkpoints that a path names: that of a run directory, or else the path itself."""
    return path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path


_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand_path(text: str, *, key: str = "") -> str:
    """A path with `~` and environment variables (`$SCRATCH`, `${SCRATCH}`) replaced, as a shell does it.

    A shell itself does so only for words of their own, not behind the `=` of `data.prepared_dir=~/tokens`.

    Args:
        text: as it was written; an address such as `s3://…` is possible.
        key: what it was written for, for the error.

    Raises:
        ConfigError: a variable is not set, or there is no such user. Nobody means a folder that is called `$SCRATCH`.
    """
    if not text.strip():
        raise ConfigError(f"{key}={text} is empty. Give a path." if key else "A path is empty. Give one.")
    written = f"{key}={text}" if key else text
    unset = [name for pair in _VARIABLE.findall(text) for name in pair if name and name not in os.environ]
    if unset:
        raise ConfigError(f"{written}: the environment variable {unset[0]} is not set. Set it, or write the path out.")
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith("~"):
        raise ConfigError(
            f"{written}: there is no user of that name. Write the whole path, or ./{text} for a file of that name."
        )
    return expanded
