"""`python -m probes predict PATH…`: scores at the end of a run, or of a task that it did not measure.

Only the command line; what it does is `probes.curves.predict`.

  python -m probes predict runs/mine                              # its own past
  python -m probes predict runs/mine runs/small-1 runs/small-2    # learns from finished smaller runs of the family
  python -m probes predict published:pythia --run pythia-12b --seen 0.3     # as it was at 30 %, beside what came
  python -m probes predict runs/mine runs/other --unseen piqa     # a task that runs/mine lacks, from its siblings
"""

from __future__ import annotations

import argparse

from pretrain.arguments import count_of
from probes.commands.references import add_references_argument
from probes.commands.show_table import add_table_arguments, loader, share, table_of

HELP = "predict final scores, or a task that was not measured, with intervals"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_table_arguments(parser)
    parser.add_argument(
        "--run", dest="only", action="append", metavar="NAME", help="predict this run; those in progress otherwise"
    )
    add_references_argument(parser, purpose="runs to learn from, instead of smaller siblings")
    parser.add_argument(
        "--at-tokens", type=count_of("tokens"), metavar="N", help="predict there; at the planned end otherwise"
    )
    parser.add_argument("--seen", type=share, metavar="SHARE", help="as if only this share of a run had been seen")
    parser.add_argument("--metric", action="append", metavar="NAME", help="only these metrics")
    parser.add_argument(
        "--unseen", nargs="+", action="extend", metavar="TASK", help="tasks a run did not measure, from those it did"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the predictions and writes them.

    Raises:
        ProbeError: nothing can be read, or a run, task or metric is not there, or nothing is left to predict.
    """
    from probes import curves

    found = curves.predict(
        table_of(options),
        run=options.only,
        references=options.references,
        at_tokens=options.at_tokens,
        seen=options.seen,
        metric=options.metric,
        unseen=options.unseen,
        load=loader(options),
    )
    print(found)
    if options.output is not None:
        found.write(options.output)
    return 0
