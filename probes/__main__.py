"""`python -m probes COMMAND …`: the prober's command line.

Only the dispatcher: each command is a module of `probes.commands`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial

_pretrain = importlib.util.find_spec("pretrain")
if _pretrain is None or _pretrain.submodule_search_locations is None:  # nothing of the package can be imported
    sys.exit(
        f"error: {_pretrain.origin if _pretrain else 'no package'} is found as pretrain, in place of the package that "
        "belongs to probes. Start in another folder, rename the file, or set PYTHONSAFEPATH=1."
    )

from pretrain.arguments import Command, run_command  # noqa: E402

COMMANDS = ("report", "compile", "prefetch", "score", "watch", "paired", "predict", "compare", "trust", "fit", "state")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code: 0, or that of the error, whose message alone is printed.
    """
    return run_command(
        arguments,
        prog="python -m probes",
        description="Scores downstream tasks and shows scores.",
        commands={name: partial(_load, name) for name in COMMANDS},
    )


def _load(name: str) -> Command:
    return Command.of_module(importlib.import_module(f"probes.commands.{name}"))


if __name__ == "__main__":
    sys.exit(main())
