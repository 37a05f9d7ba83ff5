"""`python -m probes trust PATH…`: which curves can be trusted now, and the few tasks to watch.

Only the command line; what it does is `probes.curves.trust`.

  python -m probes trust runs/mine                       # this run now
  python -m probes trust runs/mine --at-tokens 2e10      # as it was
  python -m probes trust published:pythia --run pythia-1.4b --output trust.csv
"""

from __future__ import annotations

import argparse

from pretrain.arguments import count_of
from probes.commands.show_table import add_table_arguments, table_of

HELP = "say which tasks and metrics can be trusted now, and which to watch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_table_arguments(parser)
    parser.add_argument("--run", dest="only", action="append", metavar="NAME", help="only this run")
    parser.add_argument(
        "--at-tokens", type=count_of("tokens"), metavar="N", help="judge runs as when they had seen so many tokens"
    )
    parser.add_argument(
        "--since-step", type=count_of("steps"), metavar="N", help="leave out earlier checkpoints; the first 512 steps"
    )
    parser.add_argument("--watch", type=int, default=6, metavar="N", help="recommend at most so many tasks; 6")
    parser.add_argument("--all", action="store_true", help="show every part of large benchmarks")


def run(options: argparse.Namespace) -> int:
    """Prints the advice, then the verdicts, and writes the verdicts.

    Raises:
        ProbeError: nothing can be read, or a run is not there.
    """
    from probes import curves

    found = curves.trust(
        table_of(options),
        run=options.only,
        at_tokens=options.at_tokens,
        since_step=options.since_step,
        watch=options.watch,
        all=options.all,
    )
    print(found)
    if options.output is not None:
        found.write(options.output)
    return 0
