"""`python -m probes compare PATH…`: how alike the dynamics of tasks are across sizes, and what arises when.

Only the command line; what it does is `probes.curves.compare`. With `--original` runs are put beside a published one
instead (`probes.commands.beside_original`).

  python -m probes compare published:pythia published:pythia-deduped       # ceiling: two runs of one size
  python -m probes compare published:olmo-ladder --align loss --metric bpb
  python -m probes compare runs/small runs/large --output similarity.csv --onsets onsets.csv
  python -m probes compare runs/amber_7b --original amber                  # beside the published scores, by tokens
"""

from __future__ import annotations

import argparse
from pathlib import Path

from probes.commands.beside_original import add_original_arguments, print_beside
from probes.commands.show_table import add_table_arguments, table_of
from probes.curves.asked import known
from probes.curves.files import write_rows

HELP = "compare runs: similarity of dynamics across sizes, onset, lead and lag"

_AXES = ("tokens", "tokens_per_parameter", "flops", "loss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_table_arguments(parser)
    parser.add_argument("--align", choices=_AXES, default="tokens", help="the axis runs are compared on; tokens")
    parser.add_argument("--loss", metavar="TASK:METRIC", help="the loss to align by, where there are several")
    parser.add_argument("--run", dest="only", action="append", metavar="NAME", help="only these runs")
    parser.add_argument("--metric", action="append", metavar="NAME", help="only these metrics")
    parser.add_argument("--all", action="store_true", help="every part of large benchmarks, too (slow)")
    parser.add_argument("--draws", type=int, default=100, metavar="N", help="of each bootstrap; 100")
    add_original_arguments(parser)
    parser.add_argument("--onsets", type=Path, metavar="FILE", help="also write the onsets: .csv, .parquet or .json")


def run(options: argparse.Namespace) -> int:
    """Prints similarity, onsets, leads and the agreement of orders, and writes the first two.

    Raises:
        ProbeError: nothing can be read, a run is not there, there is nothing to align by, or nothing was measured as
            the original was.
    """
    from probes import curves

    table = table_of(options)
    if options.original:
        return print_beside(table, table.by_size(known(options.only, table.runs, "--run") or table.runs), options)
    compared = curves.compare(
        table,
        run=options.only,
        align=options.align,
        loss=options.loss,
        metric=options.metric,
        all=options.all,
        draws=options.draws,
    )
    print(compared)
    if options.output is not None:
        compared.write(options.output)
    if options.onsets is not None:
        write_rows(compared.onset_rows(), options.onsets)
    return 0
