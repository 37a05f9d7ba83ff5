"""`python -m pretrain.data COMMAND …`: raw text to tokens, and what became of them.

Only the dispatcher: each command is a module of `pretrain.data.commands`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from pretrain.arguments import Command, run_command

COMMANDS = ("prepare", "check", "show", "train_tokenizer", "check_tokenizer", "decontaminate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code: 0, or that of the error, whose message alone is printed.
    """
    return run_command(
        arguments,
        prog="python -m pretrain.data",
        description="Prepares a run's data and shows it.",
        commands={name: partial(_load, name) for name in COMMANDS},
    )


def _load(name: str) -> Command:
    return Command.of_module(importlib.import_module(f"pretrain.data.commands.{name}"))


if __name__ == "__main__":
    sys.exit(main())
