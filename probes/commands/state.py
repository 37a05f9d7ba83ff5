"""`python -m probes state PATH…`: whether a run is healthy, in words with numbers.

Only the command line; what it does is `probes.curves.state`. Runs are held against the references that are named,
else against finished smaller runs of their family among the paths, else against their own past.

  python -m probes state runs/mine
  python -m probes state runs/mine runs/small-1 runs/small-2 --run mine
  python -m probes state runs/mine --references published:pythia

The exit code is that of the verdict: 0 healthy, 3 watch, 4 act, 5 unknown (nothing could be judged). Of several runs
the gravest verdict counts: act, then watch, then unknown, then healthy. Errors have exit codes 1 and 2.
"""

from __future__ import annotations

import argparse

from probes.commands.references import add_references_argument
from probes.commands.show_table import add_table_arguments, loader, share, table_of

EXIT_CODES = {"healthy": 0, "watch": 3, "act": 4, "unknown": 5}

HELP = "say whether a run is healthy, to be watched, or to be acted on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_table_arguments(parser)
    parser.add_argument(
        "--run", dest="only", action="append", metavar="NAME", help="only these runs; all in the paths otherwise"
    )
    add_references_argument(parser, purpose="runs to hold the others against")
    parser.add_argument("--seen", type=share, metavar="SHARE", help="as if only this share of a run had been seen")


def run(options: argparse.Namespace) -> int:
    """Prints one verdict a run, its evidence and its domains, and writes the domains.

    Returns:
        The exit code of the gravest verdict.

    Raises:
        ProbeError: nothing can be read, or a run is not there.
    """
    from probes import curves

    found = curves.state(
        table_of(options), run=options.only, references=options.references, seen=options.seen, load=loader(options)
    )
    print(found)
    if options.output is not None:
        found.write(options.output)
    return EXIT_CODES[found.verdict]
