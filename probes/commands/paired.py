"""Compares two checkpoints item by item: the difference of each metric, and how sure it is.

  python -m probes paired runs/demo/checkpoints/step_00001000 runs/demo
  python -m probes paired runs/a runs/b --metric acc --metric gold_bpb
  python -m probes paired scores/a scores/b --task arc_easy --output paired.csv

Two checkpoints answer the same questions and are right on mostly the same ones, so that the difference between them is
known far better than either score. Each of the two is a checkpoint of a run (it need not be there any more), a run (its
newest scored step), a folder that `score … out=FOLDER` wrote, or a file of answers (`items/PLAN/step_*.parquet`). Both
must have been scored by the same plan. Shown is second minus first with a 95 % interval, difference ± 1.96 standard
errors. `acc` says whether the likeliest answer is right, `acc_norm` the same by characters: a task with a rule of its
own (TruthfulQA's mc2) counts otherwise in a run's scores. `bits_per_byte` is the mean over texts, each counted once.
The last lines take the items of all tasks as one set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ProbeError
from probes.commands.show_table import print_table, write_rows

if TYPE_CHECKING:
    from probes.paired import Items, PairedDifference

HELP = "compare two checkpoints item by item, with the standard error of the difference"

_DEFAULT_METRICS = ("acc", "acc_norm", "gold_bpb", "bits_per_byte")
_ALL = "all"
_DEVIATIONS = 1.96
"""Of a normal distribution, 95 % of which lie within."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("first", type=Path, metavar="FIRST", help="checkpoint, run, scored folder or file of answers")
    parser.add_argument("second", type=Path, metavar="SECOND", help="the same; FIRST is subtracted from it")
    parser.add_argument("--metric", action="append", metavar="NAME", help=f"only these; `{_ALL}`: all of the items")
    parser.add_argument("--task", action="append", metavar="NAME", help="only these tasks")
    parser.add_argument("--suite", metavar="NAME", help="where both were scored by several: the one to compare by")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the rows (.csv, .parquet or .json)")


def run(options: argparse.Namespace) -> int:
    """Prints the differences.

    Raises:
        ProbeError: there are no answers, they come from different plans, or a task or metric is unknown.
    """
    from probes.paired import open_pair

    first, second = open_pair(options.first, options.second, suite=options.suite)
    rows = _rows(first, second, options.metric or list(_DEFAULT_METRICS), options.task)
    print(
        f"{options.second} at step {second.step} minus {options.first} at step {first.step}, "
        f"suite {first.suite}, plan {first.plan_hash}:"
    )
    print_table(rows)
    if options.output is not None:
        write_rows(rows, options.output)
    return 0


def _rows(first: Items, second: Items, metrics: Sequence[str], tasks: Sequence[str] | None) -> list[dict[str, Any]]:
    """A row for each task and metric that it has; without `tasks` also for the items of all tasks as one set."""
    from probes.paired import paired_difference

    unknown = [task for task in tasks or () if task not in first.tasks]
    if unknown:
        raise ProbeError(f"--task {unknown[0]} is not among the items. Known: {', '.join(first.tasks)}.")
    of_tasks = {task: list(first.values(task)) for task in tasks or first.tasks}
    known = list(dict.fromkeys(name for names in of_tasks.values() for name in names))
    wanted = known if _ALL in metrics else [name for name in metrics if name in known]
    missing = [name for name in metrics if name not in (*known, *_DEFAULT_METRICS, _ALL)]
    if missing or not wanted:
        raise ProbeError(
            f"--metric {(missing or metrics)[0]} is not among the items' metrics. Known: {', '.join(sorted(known))}."
        )
    rows = []
    for task, names in of_tasks.items():
        rows += [
            _row(task, name, paired_difference(first, second, name, task=task)) for name in wanted if name in names
        ]
    for name in wanted if tasks is None else ():
        if sum(name in names for names in of_tasks.values()) > 1:
            rows.append(_row("all items", name, paired_difference(first, second, name)))
    return rows


def _row(task: str, metric: str, found: PairedDifference) -> dict[str, Any]:
    margin = None if found.stderr is None else _DEVIATIONS * found.stderr
    return {
        "task": task,
        "metric": metric,
        "items": found.num_items,
        "first": found.first,
        "second": found.second,
        "difference": found.difference,
        "stderr": found.stderr,
        "low_95%": None if margin is None else found.difference - margin,
        "high_95%": None if margin is None else found.difference + margin,
    }
