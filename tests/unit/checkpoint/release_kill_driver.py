"""Releases a run in forked processes, each killed at another call to the disk; prints what is left, and after that.

Run as `python -m tests.unit.checkpoint.release_kill_driver RUN STRIDE`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from pretrain.checkpoint.__main__ import main as checkpoint_command
from pretrain.checkpoint.digests import damage_in_release
from tests.unit.checkpoint.kill_driver import arm


def contents(out: Path) -> dict[str, str]:
    """Digest of every file, cards too, leftovers too."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(run: Path, stride: int) -> None:
    out, command = run / "export", ["release", str(run)]
    sys.stdout, printed = io.StringIO(), sys.stdout  # the command's tables go nowhere
    assert checkpoint_command(command) == 0
    expected = contents(out)
    for number in itertools.count(1, stride):
        shutil.rmtree(out)
        child = os.fork()
        if child == 0:
            arm(number)
            checkpoint_command(command)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = sorted(path.name for path in out.iterdir()) if out.exists() else []
        sound = all(damage_in_release(out / name) is None for name in left if not name.startswith("."))
        again = checkpoint_command(command)
        row = {"killed": killed, "left": left, "sound": sound, "again": again, "same": contents(out) == expected}
        print(json.dumps(row), file=printed, flush=True)
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
