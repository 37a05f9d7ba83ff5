"""`python -m probes trust PATH…`: which curves can be trusted now, and the few tasks to watch.

Only the command line; the rule is `probes.dynamics.trust`, the choice `probes.dynamics.recommend`.

  python -m probes trust runs/mine                       # this run now
  python -m probes trust runs/mine --at-tokens 2e10      # as it was
  python -m probes trust published:pythia --run pythia-1.4b --output trust.csv
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pretrain.arguments import count_of
from probes.commands.show_table import add_table_arguments, print_table, table_of, write_rows

if TYPE_CHECKING:
    from probes.dynamics.ordering import Ordering
    from probes.dynamics.table import CurveTable
    from probes.dynamics.trust import Verdict

HELP = "say which tasks and metrics can be trusted now, and which to watch"

_SHOWN = (
    "task",
    "metric",
    "shots",
    "score",
    "above_chance",
    "p_value",
    "monotonicity",
    "gain",
    "decay",
    "trusted",
    "reason",
)


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
    """Prints verdicts and recommendations, and writes the verdicts.

    Raises:
        ProbeError: nothing can be read, or a run is not there.
    """
    from probes.curves.asked import known
    from probes.dynamics.benchmarks import parts_of_large_benchmarks
    from probes.dynamics.decay import decay_of
    from probes.dynamics.ordering import compare_orders
    from probes.dynamics.recommend import recommend, soon
    from probes.dynamics.trust import TrustRule, judge

    table = table_of(options)
    known(options.only or [], table.runs, "--run")
    names = table.by_size(options.only or table.runs)
    rule = TrustRule() if options.since_step is None else replace(TrustRule(), since_step=options.since_step)
    seen = _until(table, options.at_tokens)
    verdicts = judge(seen, runs=names, rule=rule)
    for name in names:
        own = [verdict for verdict in verdicts if verdict.run == name]
        decay = decay_of(seen, name, rule=rule)
        tokens = max((verdict.tokens for verdict in own), default=0.0)
        print(f"\n{name}, {_legible(tokens)} tokens: {sum(one.trusted for one in own)} of {len(own)} curves trusted")
        print_table([_shown(row) for row in (_rows(own) if options.all else _collapsed(own))], columns=_SHOWN)
        chosen = recommend(seen, name, limit=options.watch, rule=rule, verdicts=own)
        if own and all(verdict.num_checkpoints < rule.checkpoints for verdict in own):
            print("too early to tell: the very first checkpoints do not count; --since-step N looks at earlier ones")
        for one in chosen:
            print(f"watch {one.series}: {one.reason}")
        if not chosen:
            print("watch the loss: no task can be trusted yet" if not decay.tasks else "watch the loss")
        if not seen.is_finished(name):
            own_past = table if options.at_tokens is None else table.until(name, options.at_tokens)
            coming = list(soon(own_past, name, rule=rule).items())[: options.watch]
            for series, (tokens, reference) in coming:
                print(f"soon {series}: could be trusted from {_legible(tokens)} tokens in {reference}")
        if decay.tasks:
            meaning = "this speaks of the run" if decay.decays else "luck gives as many among so many tasks"
            print(f"decay: {decay.reason} ({meaning})")
    orders = compare_orders(seen, runs=names) if len(names) > 2 else []
    if orders:
        print("\nWhat the runs' order tells (FineTasks, DataDecide, Signal & Noise):")
        parts = set() if options.all else set(parts_of_large_benchmarks(one.series for one in orders))
        print_table([_order(one) for one in orders if one.series not in parts])
    if options.output is not None:
        by_series = {one.series: _order(one) for one in orders}
        write_rows([{**_row(one), **_shared(by_series.get(one.series, {}))} for one in verdicts], options.output)
    return 0


def _until(table: CurveTable, tokens: float | None) -> CurveTable:
    from probes.dynamics.table import CurveTable

    return table if tokens is None else CurveTable(table.runs.values(), [curve.until(tokens) for curve in table])


def _rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return sorted((_row(verdict) for verdict in verdicts), key=lambda row: not row["trusted"])


def _row(verdict: Verdict) -> dict[str, Any]:
    facts = asdict(verdict)
    series = facts.pop("series")
    shots = series["num_fewshot"] if series["num_fewshot"] >= 0 else None
    run = facts.pop("run")
    return {"run": run, "task": series["task"], "metric": series["metric"], "shots": shots, **facts}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row to print: scores of different units in one column have no common number of decimals."""
    written = {
        key: f"{row[key]:.{digits}g}" for key, digits in (("score", 4), ("p_value", 1)) if row.get(key) is not None
    }
    return row | {key: text for key, text in written.items() if text != "nan"}


def _collapsed(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Rows with one line for each large benchmark, which says how many parts can be trusted."""
    from probes.dynamics.benchmarks import parts_of_large_benchmarks

    part_of = parts_of_large_benchmarks(verdict.series for verdict in verdicts)
    rows = _rows([verdict for verdict in verdicts if verdict.series not in part_of])
    groups: dict[tuple[str, str, int], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.series in part_of:
            key = part_of[verdict.series], verdict.series.metric, verdict.series.num_fewshot
            groups[key].append(verdict)
    for (benchmark, metric, shots), group in groups.items():
        count = sum(verdict.trusted for verdict in group)
        rows.append(
            {
                "task": f"{benchmark} ({len(group)} parts)",
                "metric": metric,
                "shots": shots if shots >= 0 else None,
                "score": sum(verdict.score for verdict in group) / len(group),
                "trusted": 2 * count >= len(group),
                "reason": f"{count} of {len(group)} parts trusted; --all shows them",
            }
        )
    return rows


def _order(one: Ordering) -> dict[str, Any]:
    return {
        "task": one.series.task,
        "metric": one.series.metric,
        "shots": one.series.num_fewshot if one.series.num_fewshot >= 0 else None,
        "runs": len(one.runs),
        "ordering_consistency": one.ordering_consistency,
        "early_tokens": one.early_tokens,
        "decision_accuracy": one.decision_accuracy,
        "signal_to_noise": one.signal_to_noise,
        "is_non_random": one.is_non_random,
    }


def _shared(order: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in order.items() if key not in ("task", "metric", "shots", "runs")}


def _legible(count: float) -> str:
    from pretrain.track.legible import legible_count

    return legible_count(int(count))
