"""Saves step 2 in forked processes, each killed at another of the save's calls to the disk; prints what is left.

Run as `python -m tests.unit.checkpoint.kill_driver FOLDER`: one process loads torch, forks are cheap.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from pretrain.checkpoint.reader import damage_in, newest_valid
from tests.unit.checkpoint.ranks import save_random


def arm(number: int) -> None:
    """Makes the number-th call to write, fsync, rename or unlink the last thing this process does."""
    counter, lock = itertools.count(1), threading.Lock()

    def deadly(name, real):
        def call(*arguments, **options):
            with lock:
                if next(counter) == number:
                    if name == "write":  # half of it arrives
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("write", "fsync", "rename", "unlink", "mkdir"):
        setattr(os, name, deadly(name, getattr(os, name)))


def main(root: Path) -> None:
    first = save_random(root.with_name("first"), 1)
    for number in itertools.count(1):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(first, root / "step_00000001")
        child = os.fork()
        if child == 0:
            arm(number)
            save_random(root, 2, background=bool(number % 2))
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = sorted(os.listdir(root))
        chosen = newest_valid(root)
        sound = {name: damage_in(root / name) is None for name in left if name in ("step_00000001", "step_00000002")}
        save_random(root, 2)
        row = {"number": number, "killed": killed, "left": left, "chosen": chosen and chosen.name, "sound": sound}
        row |= {"after": sorted(os.listdir(root)), "chosen_after": newest_valid(root).name}
        print(json.dumps(row), flush=True)
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
