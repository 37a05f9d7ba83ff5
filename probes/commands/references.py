"""`--references` of the commands that hold runs against others: `predict`, `state` and `fit`.

No command of its own. What can be named, and what is left out, is for `probes.dynamics.references`.
"""

from __future__ import annotations

import argparse

from pretrain.arguments import written_path


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
