"""Command lines: options and words in any order, and the nearest right name for a wrong one.

Every command is declared with `CommandParser`. `run_command` is the whole of a program such as `python -m probes`: it
finds the command, reads its arguments, runs it, and prints an error of ours without a traceback.
`python -m pretrain` alone reads its own arguments (`pretrain.__main__`), because Hydra answers some of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ConfigError, FinelineError
from pretrain.locate import expand_path
from pretrain.shadowed import require_own_package
from pretrain.terminal import READER_HAS_GONE, accept_every_character, reader_has_gone
from pretrain.units import parse_count


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a program.

    Attributes:
        help: what it does, in one line.
        description: the beginning of its `--help`.
        add_arguments: declares what it takes.
        run: does it; returns the exit code.
    """

    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    @classmethod
    def of_module(cls, module: ModuleType) -> Command:
        """The command that a module declares with HELP, its docstring, `add_arguments` and `run`."""
        return cls(module.HELP, module.__doc__ or module.HELP, module.add_arguments, module.run)


def written_path(text: str) -> str:
    """A path, or the name of something that has one, for argparse: with `~` and environment variables replaced."""
    try:
        return expand_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count_of(unit: str) -> Callable[[str], int]:
    """A number of steps, tokens or other things, for argparse: `200`, `1e9`, `10B`, `10B tokens`."""

    def read(text: str) -> int:
        try:
            return parse_count(text, unit=unit)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that takes options and words in any order, and no abbreviated options.

    Arguments of `type=Path` have `~` and environment variables replaced; the shell does not in `--output=~/page.html`.
    """

    def __init__(self, prog: str, *, description: str) -> None:
        super().__init__(
            prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.register("type", Path, lambda text: Path(written_path(text)))

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of a command line. Ends the process with exit code 2 where it is wrong."""
        for word in words:
            if word == "--":
                break
            option = word.partition("=")[0]
            if word.startswith("-") and word != "-" and not self._is_known(option):
                self.error(f"{option} is not an option.{did_you_mean(option, self._option_string_actions)}")
        return self.parse_intermixed_args(words)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong; names the options that may have taken the words which are missing."""
        greedy = [action.option_strings[0] for action in self._actions if action.option_strings and action.nargs == "+"]
        if message.startswith("the following arguments are required") and greedy:
            message += (
                f". Put these before {' and '.join(greedy)}, which take all words up to the next option, or write a "
                f"value of such an option as {greedy[0]}=VALUE"
            )
        super().error(message)

    def _is_known(self, option: str) -> bool:
        return option in self._option_string_actions or bool(self._negative_number_matcher.match(option))


def run_command(
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    commands: Mapping[str, Callable[[], Command]],
) -> int:
    """Runs a program of several commands, `python -m PROGRAM COMMAND …`.

    Args:
        arguments: without the program's name; None takes them from the process.
        prog: the program, as `python -m probes`.
        description: what it is for.
        commands: by name, a function that loads each; only the one that is wanted is loaded.

    Returns:
        The command's exit code, or that of its error, whose message alone is printed.
    """
    accept_every_character()
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    if name not in commands:
        _show_commands(words, prog=prog, description=description, commands=commands)
    command = commands[name]()
    parser = CommandParser(f"{prog} {name}", description=command.description)
    command.add_arguments(parser)
    options = parser.read(words[1:])
    try:
        require_own_package()
        code = int(command.run(options))
        sys.stdout.flush()
        return code
    except FinelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        print(f"error: {error.filename} may not be read or written by this user ({error.strerror}).", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if not reader_has_gone():
            raise
        return READER_HAS_GONE


def _show_commands(
    words: Sequence[str], *, prog: str, description: str, commands: Mapping[str, Callable[[], Command]]
) -> NoReturn:
    """Answers `--help`, or says that there is no such command; ends the process."""
    parser = argparse.ArgumentParser(prog, description=description)
    listed = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, load in commands.items():
        listed.add_parser(name, help=load().help)
    if not words or words[0] in ("-h", "--help"):
        parser.parse_args(words)
    parser.error(f"{words[0]} is not a command.{did_you_mean(words[0], commands)} Known: {', '.join(commands)}.")
