"""`python -m probes compare PATH…`: how alike the dynamics of tasks are across sizes, and what arises when.

Only the command line; the methods are `probes.dynamics.similarity`, `onset` and `arising`. With `--original` runs are
put beside a published one instead (`probes.commands.beside_original`).

  python -m probes compare published:pythia published:pythia-deduped       # ceiling: two runs of one size
  python -m probes compare published:olmo-ladder --align loss --metric bpb
  python -m probes compare runs/small runs/large --output similarity.csv --onsets onsets.csv
  python -m probes compare runs/amber_7b --original amber                  # beside the published scores, by tokens
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count
from probes.commands.beside_original import add_original_arguments, print_beside
from probes.commands.show_table import add_table_arguments, print_table, table_of, write_rows

if TYPE_CHECKING:
    from probes.dynamics.arising import Lead
    from probes.dynamics.onset import Arising
    from probes.dynamics.similarity import SizeComparison
    from probes.dynamics.table import CurveTable, Series

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
    from probes.curves.asked import known
    from probes.dynamics.align import find_series
    from probes.dynamics.arising import agreements, domains_arising, leads, order_of_arising
    from probes.dynamics.originals import hints
    from probes.dynamics.similarity import compare_sizes

    if options.draws < 2:
        raise ProbeError(f"--draws {options.draws}: an interval takes 2 draws or more; 100 are usual.")
    table = table_of(options)
    known(options.only or [], table.runs, "--run")
    names = table.by_size(options.only or table.runs)
    table = table.select(runs=names)
    if options.original:
        return print_beside(table, names, options)
    for hint in hints(table, names):
        print(hint)
    series = _chosen(table, options)
    loss = find_series(table, options.loss) if options.loss else None
    compared = compare_sizes(table, series=series, axis=options.align, loss=loss, draws=options.draws)
    similar = _similarity_rows(compared)
    print(f"Similarity across sizes, aligned by {options.align}, most alike first:")
    print_table(similar)
    print(_stability(compared))
    chosen = table.select(series=series)
    domains = {name: domains_arising(chosen, name, draws=options.draws) for name in names}
    onsets = {name: order_of_arising(chosen, name, series=series, draws=options.draws) for name in names}
    print("\nOnset and saturation of domains, in tokens:")
    print_table([_onset_row(one) for name in names for one in domains[name]])
    print("\nTasks in the order in which they arise, in tokens (--onsets FILE writes intervals and saturation):")
    for name in names:
        print(f"{name}: {_order(onsets[name])}")
    print("\nLead of one domain over another, as a ratio of tokens at their onsets:")
    print_table([_lead_row(one) for name in names for one in leads(domains[name]) if one.words != "unseen"])
    if len(names) > 1:
        print("\nWhether runs agree on the order in which tasks arise (Kendall τ):")
        print_table(
            [
                {
                    "run": one.first,
                    "other": one.second,
                    "tau": one.tau,
                    "low": one.low,
                    "high": one.high,
                    "tasks": one.num_series,
                }
                for one in agreements(onsets)
            ]
        )
    if options.output is not None:
        write_rows(similar, options.output)
    if options.onsets is not None:
        write_rows([_onset_row(one) for name in names for one in [*domains[name], *onsets[name]]], options.onsets)
    return 0


def _chosen(table: CurveTable, options: argparse.Namespace) -> list[Series]:
    """What is compared: abilities of the wanted metrics, without parts of large benchmarks."""
    from probes.dynamics.benchmarks import parts_of_large_benchmarks
    from probes.dynamics.trust import is_ability

    able = {curve.series for curve in table if is_ability(curve)}
    parts = {} if options.all else parts_of_large_benchmarks(table.series())
    wanted = [
        one
        for one in table.series()
        if one in able and one not in parts and (not options.metric or one.metric in options.metric)
    ]
    if not wanted:
        metrics = sorted({one.metric for one in able})
        raise ProbeError(f"No curve is left to compare. Metrics in the table: {', '.join(metrics)}; --all keeps parts.")
    return wanted


def _similarity_rows(compared: SizeComparison) -> list[dict[str, Any]]:
    return [
        {
            "task": one.series.task,
            "metric": one.series.metric,
            "shots": one.series.num_fewshot if one.series.num_fewshot >= 0 else None,
            "pairs": one.num_pairs,
            "pearson": one.pearson,
            "spearman": one.spearman,
            "closeness": one.closeness,
            "similarity": one.similarity,
            "low_80%": one.low,
            "high_80%": one.high,
            "ceiling": one.ceiling,
            "distance": one.distance,
            "verdict": one.words,
        }
        for one in compared.tasks
    ]


def _stability(compared: SizeComparison) -> str:
    """How far the ranking can be relied on, in a sentence."""
    stability, ceiling = compared.stability["similarity"], compared.ceiling_stability["similarity"]
    if math.isnan(stability):
        return (
            "No ranking: that takes two tasks, and runs of two sizes of one family with four checkpoints or more, from "
            "step 512 on, where they overlap on the axis."
        )
    text = f"The ranking has mean Kendall τ {stability:.2f} under noise and another choice of sizes"
    if math.isnan(ceiling):
        return f"{text}."
    return f"{text}; that of two runs of one size {ceiling:.2f} under noise."


def _order(onsets: list[Arising]) -> str:
    """The tasks of a run from the first onset to the last, then those before, not yet and never."""
    from probes.dynamics.onset import AT

    dated = [f"{one.series} {legible_count(int(one.onset.tokens))}" for one in onsets if one.onset.state == AT]
    states = dict.fromkeys(one.onset.state for one in onsets if one.onset.state != AT)
    others = [
        f"{state}: {', '.join(str(one.series) for one in onsets if one.onset.state == state)}" for state in states
    ]
    return "; ".join([", ".join(dated) or "no onset within the curves", *others])


def _onset_row(one: Arising) -> dict[str, Any]:
    return {
        "run": one.run,
        "domain": one.domain,
        "task": one.series.task,
        "metric": one.series.metric,
        "shots": one.series.num_fewshot if one.series.num_fewshot >= 0 else None,
        "onset": one.onset.state,
        "onset_tokens": one.onset.tokens,
        "onset_low_80%": one.onset.low,
        "onset_high_80%": one.onset.high,
        "saturation": one.saturation.state,
        "saturation_tokens": one.saturation.tokens,
        "saturation_low_80%": one.saturation.low,
        "saturation_high_80%": one.saturation.high,
        "rise_over_noise": one.rise,
        "reason": one.reason,
    }


def _lead_row(one: Lead) -> dict[str, Any]:
    return {
        "run": one.run,
        "first": one.first,
        "second": one.second,
        "verdict": one.words,
        "ratio": one.ratio,
        "low_80%": one.low,
        "high_80%": one.high,
    }
