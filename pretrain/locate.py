"""Where things lie in a run directory, and which run or folder of checkpoints a path names.

Users name whichever is at hand: a run directory, its folder of checkpoints, or one checkpoint. Commands accept all of
them. Paths only: `pretrain.directory` says what the files mean, `pretrain.checkpoint.reader` which checkpoint is whole.
"""

from __future__ import annotations

import os
from pathlib import Path

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
