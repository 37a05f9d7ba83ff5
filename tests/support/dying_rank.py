"""`python -m tests.support.dying_rank FOLDER NUMBER overrides…`: a run whose last rank dies while it saves.

It is killed at its NUMBER-th call to the disk after the folder (a checkpoint that is being written) has appeared.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pretrain.__main__ import main


def arm(folder: Path, number: int) -> None:
    """Makes a later call to write, fsync or rename the last thing this process does."""
    calls, lock = 0, threading.Lock()

    def deadly(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            with lock:
                calls += folder.exists()
                if calls == number:
                    if name == "write":  # half of it arrives
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("write", "fsync", "rename"):
        setattr(os, name, deadly(name, getattr(os, name)))


if __name__ == "__main__":
    if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        arm(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
