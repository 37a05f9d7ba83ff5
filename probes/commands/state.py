"""`python -m probes state PATH…`: whether a run is healthy, in words with numbers.

Only the command line; the rules are in `probes.dynamics.state`. Runs are held against the references that are named,
else against finished smaller runs of their family among the paths, else against their own past.

  python -m probes state runs/mine
  python -m probes state runs/mine runs/small-1 runs/small-2 --run mine
  python -m probes state runs/mine --references published:pythia

The exit code is that of the verdict: 0 healthy, 3 watch, 4 act, 5 unknown (nothing could be judged). Of several runs
the gravest verdict counts: act, then watch, then unknown, then healthy. Errors have exit codes 1 and 2.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from probes.commands.references import add_references_argument, with_references
from probes.commands.show_table import add_table_arguments, print_table, share, table_of, write_rows
from probes.curves.asked import known

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
    from probes.dynamics.evidence import gravest
    from probes.dynamics.explain_state import figures_explained
    from probes.dynamics.state import assess, state_rows

    table = table_of(options)
    known(options.only or [], table.runs, "--run")
    names = options.only or list(table.runs)
    table, references = with_references(table, options)
    rows: list[dict[str, Any]] = []
    verdicts = []
    told: set[str] = set()
    for name in names:
        seen = table
        if options.seen:
            seen = table.until(name, options.seen * (table.runs[name].total_tokens or table.last_tokens(name)))
        state = assess(seen, name, references=references)
        for sentence in (f"{other} is no reference: {reason}." for other, reason in state.no_references.items()):
            if sentence not in told:
                print(sentence)
            told.add(sentence)
        print(f"{name}, step {state.step:,}: {state.summary}")
        for evidence in state.evidence[1:]:
            print(f"  {evidence.verdict}: {evidence.sentence}")
        if state.evidence:
            print(f"  held against {state.basis}")
        if not state.unknown:
            for domain in state.domains:
                if domain.unknown:
                    print(f"  {domain.verdict}: {domain.domain} is not judged. {domain.unknown}")
        of_run = state_rows(state)
        if of_run:
            print_table(of_run, columns=["domain", "verdict", "change", "level", "task", "shots", "seen", "expected"])
        print()
        verdicts.append(state.verdict)
        rows += of_run
    if any(math.isfinite(row["change"]) or math.isfinite(row["level"]) for row in rows):
        print("\n".join(figures_explained()))
    if options.output is not None:
        write_rows(rows, options.output)
    return EXIT_CODES[gravest(verdicts)]
