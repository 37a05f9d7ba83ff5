"""`python -m probes predict PATH…`: scores at the end of a run, or of a task that it did not measure.

Only the command line; the methods are `probes.dynamics.predict` and `probes.dynamics.siblings`.

  python -m probes predict runs/mine                              # its own past
  python -m probes predict runs/mine runs/small-1 runs/small-2    # learns from finished smaller runs of the family
  python -m probes predict published:pythia --run pythia-12b --seen 0.3     # as it was at 30 %, beside what came
  python -m probes predict runs/mine runs/other --unseen piqa     # a task that runs/mine lacks, from its siblings
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pretrain.arguments import count_of
from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from pretrain.track.legible import legible_count
from probes.commands.references import add_references_argument, with_references
from probes.commands.show_table import add_table_arguments, print_table, series_name, share, table_of, write_rows

if TYPE_CHECKING:
    from probes.dynamics.table import CurveTable, Series

_SHOWN_REFUSALS = 6

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
    table = table_of(options)
    known(options.only or [], table.runs, "--run")
    metrics = sorted({curve.metric for curve in table})
    for name in options.metric or []:
        if name not in metrics:
            raise ProbeError(
                f"--metric {name}: no run has it.{did_you_mean(name, metrics)} Known: {', '.join(metrics)}."
            )
    names = options.only or (list(table.runs) if options.unseen or options.seen else _in_progress(table, options))
    whole, references = with_references(table, options)
    predict = _unseen if options.unseen else _finals
    rows = predict(whole, options, names=names, references=references)
    if not rows:
        raise ProbeError(_nothing_left(table, options))
    _print(rows)
    if options.output is not None:
        write_rows(rows, options.output)
    return 0


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """What is predicted, then by which runs, then what is refused, one line a reason."""
    predicted = [row for row in rows if not row["refused"]]
    if predicted:
        print_table([{key: cell for key, cell in row.items() if key not in ("method", "refused")} for row in predicted])
    for method in dict.fromkeys(row["method"] for row in predicted):
        print(f"from {method}")
    for run, reason in dict.fromkeys((row["run"], row["refused"]) for row in rows if row["refused"]):
        names = [series_name(row, rows) for row in rows if (row["run"], row["refused"]) == (run, reason)]
        shown = ", ".join(dict.fromkeys(names[:_SHOWN_REFUSALS])) + (", …" if len(names) > _SHOWN_REFUSALS else "")
        print(f"refused, {run}, {len(names)} series: {reason} {shown}")


def _nothing_left(table: CurveTable, options: argparse.Namespace) -> str:
    if options.unseen:
        return (
            f"Every run in the table has measured {', '.join(options.unseen)}. Name one with --run NAME to have it "
            "predicted as if that run had not."
        )
    if options.only or options.seen or _in_progress(table, options):
        from probes.dynamics.metrics import PREDICTED

        return f"The runs have none of the metrics that can be predicted: {', '.join(PREDICTED)}."
    furthest = max(table.runs, key=table.last_tokens)
    last = f"the latest checkpoint of {furthest} is at {legible_count(int(table.last_tokens(furthest)))} tokens"
    if options.at_tokens is not None:
        return f"No run of the table ends before --at-tokens {options.at_tokens:.4g}: {last}. Give a later position."
    if any(facts.total_tokens is None for facts in table.runs.values()):
        return (
            f"How long the runs are to be is not known: {last}. Say where to predict with --at-tokens N, or write the "
            "planned end into a column total_tokens of the table or of a --runs file. --seen 0.3 predicts the latest "
            "checkpoint from the first 30 %."
        )
    return (
        "Every run in the table is at its planned end. Name one with --run NAME and how much of it to look at with "
        "--seen 0.3, or a later position with --at-tokens."
    )


def known(names: Sequence[str], runs: Sequence[str] | dict[str, Any], key: str) -> None:
    """Refuses names of runs that are not in the table.

    Raises:
        ProbeError: names the nearest right one.
    """
    for name in names:
        if name not in runs:
            raise ProbeError(f"{key} {name}: there is no such run.{did_you_mean(name, runs)} Known: {', '.join(runs)}.")


def _in_progress(table: CurveTable, options: argparse.Namespace) -> list[str]:
    """Runs before their planned end; with `--at-tokens` those of unknown length, or else all that end before it."""
    unfinished = [name for name in table.runs if not table.is_finished(name)]
    if options.at_tokens is None:
        return unfinished
    open_ended = [name for name, facts in table.runs.items() if facts.total_tokens is None or name in unfinished]
    return [name for name in open_ended or table.runs if table.last_tokens(name) < options.at_tokens]


def _finals(
    table: CurveTable, options: argparse.Namespace, *, names: Sequence[str], references: Sequence[str] | None
) -> list[dict[str, Any]]:
    from probes.dynamics.predict import LEVEL, predict_finals, predictable

    rows: list[dict[str, Any]] = []
    for name in names:
        total = table.runs[name].total_tokens or table.last_tokens(name)
        seen = table.until(name, options.seen * total) if options.seen else table
        wanted = [one for one in predictable(seen, name) if not options.metric or one.metric in options.metric]
        at = options.at_tokens or (total if options.seen else None)
        for found in predict_finals(seen, name, series=wanted, references=references, tokens=at):
            now, whole = seen.get(name, found.series), table.get(name, found.series)
            came = whole is not None and options.seen and abs(whole.tokens_C[-1] - found.tokens) <= 0.005 * found.tokens
            rows.append(
                {
                    "run": name,
                    **_series(found.series),
                    "at_tokens": found.tokens,
                    "now": float(now.value_C[-1]) if now is not None else None,
                    "predicted": found.value,
                    f"low_{LEVEL:.0%}": found.low,
                    f"high_{LEVEL:.0%}": found.high,
                    **({"came": float(whole.value_C[-1])} if came and whole is not None else {}),
                    "refused": found.refused,
                    "method": found.method,
                }
            )
    return rows


def _unseen(
    table: CurveTable, options: argparse.Namespace, *, names: Sequence[str], references: Sequence[str] | None
) -> list[dict[str, Any]]:
    from probes.dynamics.align import loss_series
    from probes.dynamics.chance import at_chance
    from probes.dynamics.predict import LEVEL, predictable
    from probes.dynamics.siblings import predict_unseen
    from probes.dynamics.watched import is_loss

    targets = [one for one in table.series() if one.task in options.unseen]
    targets = [one for one in targets if not options.metric or one.metric in options.metric]
    missing = set(options.unseen) - {one.task for one in targets}
    if missing:
        tasks = sorted({one.task for one in table.series()})
        hint = did_you_mean(min(missing), tasks)
        raise ProbeError(f"--unseen {', '.join(sorted(missing))}: no run in the table has measured it.{hint}")
    losses = {curve.series for curve in table if is_loss(curve)}
    shared = loss_series(table)
    rows = []
    for name in names:
        own = set(predictable(table, name)) - losses
        wanted = [one for one in targets if options.only or table.get(name, one) is None]
        for metric, shots in dict.fromkeys((one.metric, one.num_fewshot) for one in wanted):
            of_kind = [one for one in wanted if (one.metric, one.num_fewshot) == (metric, shots)]
            like = [one for one in own if (one.metric, one.num_fewshot) == (metric, shots)]
            found = predict_unseen(
                table,
                name,
                of_kind,
                measured=sorted(set(like) - at_chance(table, like, references=list(table.runs)).keys() - set(targets)),
                loss=shared,
                learn_from=references if references is not None else list(table.runs),
            )
            for one in found:
                last = -1 if len(one.tokens_Q) else None
                rows.append(
                    {
                        "run": name,
                        **_series(one.series),
                        "at_tokens": one.tokens_Q[last] if last else None,
                        "predicted": one.value_Q[last] if last else None,
                        f"low_{LEVEL:.0%}": one.low_Q[last] if last else None,
                        f"high_{LEVEL:.0%}": one.high_Q[last] if last else None,
                        "refused": one.refused,
                        "method": f"siblings {', '.join(s.task for s in one.siblings)}; loss {shared.task}",
                    }
                )
    return rows


def _series(series: Series) -> dict[str, Any]:
    shots = series.num_fewshot if series.num_fewshot >= 0 else None
    return {"task": series.task, "metric": series.metric, "shots": shots}
