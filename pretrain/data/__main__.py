"""`python -m pretrain.data COMMAND …`: raw text to tokens, and what became of them.

Only the dispatcher: each command is a module of `pretrain.data.commands`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from pretrain.errors import FinelineError
from pretrain.terminal import accept_every_character

COMMANDS = ("prepare", "check", "show", "train_tokenizer", "check_tokenizer", "decontaminate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code: 0, or that of the error, whose message alone is printed.
    """
    accept_every_character()
    parser = argparse.ArgumentParser(prog="python -m pretrain.data", description="Prepares a run's data and shows it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"pretrain.data.commands.{name}")
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
