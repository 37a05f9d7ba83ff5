"""`--references` of the commands that hold runs against others: `predict`, `state` and `fit`.

No command of its own. What can be named, and what is left out, is for `probes.dynamics.references`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pretrain.arguments import written_path
from probes.commands.show_table import loader

if TYPE_CHECKING:
    from probes.dynamics.table import CurveTable


def add_references_argument(parser: argparse.ArgumentParser, *, purpose: str) -> None:
    """Adds `--references`.

    Args:
        parser: of the command.
        purpose: what the command does with the references, for its help.
    """
    parser.add_argument(
        "--references",
        nargs="+",
        action="extend",
        type=written_path,
        metavar="NAME|PATH",
        help=f"{purpose}: names of runs in the table (* stands for anything), further paths, or published:pythia",
    )


def with_references(
    table: CurveTable, options: argparse.Namespace, *, checked: bool = True
) -> tuple[CurveTable, list[str] | None]:
    """The table with the references that were named, and their names; None where none were named.

    Prints which of them are left out, and why.

    Args:
        table: of the runs that are judged.
        options: of `add_table_arguments` and `add_references_argument`.
        checked: leave out what cannot be a reference; False takes all that is named.

    Raises:
        ProbeError: a name is neither a run nor a path, or a path cannot be read.
    """
    if not options.references:
        return table, None
    from probes.dynamics.references import read_references

    read = read_references(table, options.references, load=loader(options), checked=checked)
    for note in read.notes:
        print(f"Note: {note}")
    for name, reason in read.left_out.items():
        print(f"{name} is no reference: {reason}.")
    return read.table, read.names
