"""`python -m probes COMMAND …`: the prober's command line.

Only the dispatcher: each command is a module of `probes.commands`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from pretrain.errors import FinelineError
from pretrain.terminal import accept_every_character

COMMANDS = ("report", "compile", "prefetch", "score", "watch", "predict", "compare", "trust", "fit", "state")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code: 0, or that of the error, whose message alone is printed.
    """
    accept_every_character()
    parser = argparse.ArgumentParser(prog="python -m probes", description="Scores downstream tasks and shows scores.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        if importlib.util.find_spec(f"probes.commands.{name}") is None:
            continue
        module = importlib.import_module(f"probes.commands.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except FinelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
