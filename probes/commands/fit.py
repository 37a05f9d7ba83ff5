"""`python -m probes fit PATH…`: scaling laws over runs, what they predict, and what is refused.

Only the command line; the laws are `probes.dynamics.laws`, what is fitted to what is `probes.dynamics.fit_table`.

  python -m probes fit runs/*  --parameters 7e9 --tokens 4e12      # two steps: size and tokens to loss, loss to score
  python -m probes fit table.csv --parameters 7e9 --tokens 140e9   # one row a final model, task and metric is enough
  python -m probes fit runs/mine                                   # one run's own future, by a law in tokens
  python -m probes fit runs/mine runs/shorter --law annealing      # knows the learning rates, so also a WSD's tail
  python -m probes fit published:olmo-ladder --without "*-rerun" "peteish*" --parameters 6.9e9 --tokens 3.9e12
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.arguments import count_of
from pretrain.errors import ProbeError
from probes.commands.references import add_references_argument, with_references
from probes.commands.show_table import add_table_arguments, print_table, series_name, table_of, write_rows

if TYPE_CHECKING:
    import numpy as np

    from probes.dynamics.table import CurveTable

HELP = "fit scaling laws, predict from them, refuse those that mean nothing"

_LAWS = (
    "auto",
    "ladder",
    "gadre",
    "one-exponent",
    "flops",
    "llama3",
    "direct",
    "direct-flops",
    "tokens",
    "annealing",
    "annealing-sizes",
)
_LINKS = ("sigmoid", "soft-log", "exponential")
_NO_PARAMETER = frozenset(
    {
        "family",
        "law",
        "run",
        "task",
        "metric",
        "shots",
        "points",
        "through",
        "at_parameters",
        "at_tokens",
        "predicted",
        "refused",
    }
)
_SHOWN_REFUSALS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_table_arguments(parser)
    parser.add_argument(
        "--law",
        choices=_LAWS,
        default="auto",
        help="which form; by default the one that errs least on the largest and longest runs of the table",
    )
    parser.add_argument("--link", choices=_LINKS, default="sigmoid", help="from a task's loss to its score; sigmoid")
    parser.add_argument("--parameters", type=count_of("parameters"), metavar="N", help="predict for this size")
    parser.add_argument(
        "--tokens", type=count_of("tokens"), metavar="D", help="predict for this length; a run's planned end"
    )
    add_references_argument(parser, purpose="fit these runs only")
    parser.add_argument(
        "--without", nargs="+", action="extend", metavar="NAME", default=[], help="leave these runs out"
    )
    parser.add_argument("--task", action="append", metavar="NAME", help="only these tasks")
    parser.add_argument("--metric", action="append", metavar="NAME", help="only these metrics")
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="resampled fits for intervals; 200")
    parser.add_argument("--level", type=float, default=0.8, metavar="SHARE", help="what intervals are to hold; 0.8")


def run(options: argparse.Namespace) -> int:
    """Prints fits and predictions, and writes them.

    Raises:
        ProbeError: nothing can be read, or nothing there can be fitted.
    """
    from probes.dynamics.fit_table import WantedFits, fit_rows

    _check(options)
    table, references = with_references(table_of(options), options, checked=False)
    table = _chosen(table, references, options.without)
    wanted = WantedFits(
        law=options.law,
        link=options.link,
        tasks=options.task or (),
        metrics=options.metric or (),
        parameters=options.parameters,
        tokens=options.tokens,
        draws=options.draws,
        level=options.level,
        rates=_planned_rates([*options.paths, *(options.references or [])])
        if options.law.startswith("annealing")
        else {},
    )
    rows = fit_rows(table, wanted)
    _print(rows)
    if options.output is not None:
        write_rows(rows, options.output)
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.level < 1:
        raise ProbeError(f"--level {options.level:g} is no share of outcomes. Give one above 0 and below 1, as 0.8.")
    if options.draws < 0:
        raise ProbeError(f"--draws {options.draws} is negative. Give 0 for no intervals, or some hundred.")
    for name in ("parameters", "tokens"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ProbeError(f"--{name} {value:g} is not above 0. Give a count, as 7e9.")
    if options.parameters is not None and options.tokens is None:
        raise ProbeError(
            f"--parameters {options.parameters:g} is given without --tokens. A place is both; add --tokens."
        )


def _chosen(table: CurveTable, references: Sequence[str] | None, without: Sequence[str]) -> CurveTable:
    """The table with the references, or with all runs, without those whose names match.

    Raises:
        ProbeError: a pattern matches no run, or none is left.
    """
    for pattern in without:
        if not any(fnmatchcase(name, pattern) for name in table.runs):
            raise ProbeError(f"{pattern} is the name of no run. There are: {', '.join(table.by_size(table.runs))}.")
    kept = [
        name
        for name in (table.runs if references is None else references)
        if not any(fnmatchcase(name, pattern) for pattern in without)
    ]
    if not kept:
        raise ProbeError("--without leaves no run. Leave out fewer.")
    return table.select(runs=kept)


def _planned_rates(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Learning rates of all steps of the run directories among the paths, by the run's name."""
    from pretrain.config.load import load_yaml
    from pretrain.errors import ConfigError
    from pretrain.locate import run_of
    from probes.dynamics.annealing import planned_rates
    from probes.dynamics.read_run import is_run_directory

    found = {}
    for path in (run_of(Path(text)) for text in paths):
        if not (path.is_dir() and is_run_directory(path) and (path / "config.yaml").is_file()):
            continue
        try:
            config = load_yaml(path / "config.yaml")
            found[config.run.name or path.resolve().name] = planned_rates(config)
        except ConfigError as error:
            print(f"{path}: its plan cannot be read, so only learning rates so far are known. {error.problems[0]}")
    return found


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    """The good fits with their parameters in words; then what is refused, one line a reason."""
    ends = [key for key in rows[0] if key.startswith(("low_", "high_"))]
    good = [row for row in rows if not row["refused"]]
    columns = [
        "family",
        "law",
        "run",
        "task",
        "metric",
        "shots",
        "points",
        "fit",
        "at_parameters",
        "at_tokens",
        "predicted",
        *ends,
    ]
    columns = [name for name in columns if name == "fit" or any(row.get(name) is not None for row in good)]
    if good:
        print_table([{**row, "fit": _parameters(row)} for row in good], columns=columns)
    for reason in dict.fromkeys(row["refused"] for row in rows if row["refused"]):
        names = [_name(row, rows) for row in rows if row["refused"] == reason]
        shown = ", ".join(names[:_SHOWN_REFUSALS]) + (", …" if len(names) > _SHOWN_REFUSALS else "")
        print(f"refused, {len(names)}: {reason} {shown}")


def _name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if not row["task"]:
        return str(row["run"])
    of_run = f" of {row['run']}" if row.get("run") else ""
    of_run += f" of {row['family']}" if row.get("family") else ""
    return f"{series_name(row, rows)}{of_run}"


def _parameters(row: Mapping[str, Any]) -> str:
    """The parameters with the ends of their intervals."""
    names = [
        key
        for key in row
        if key not in _NO_PARAMETER and not key.endswith(("_low", "_high")) and not key.startswith(("low_", "high_"))
    ]
    # A chained row's law is that of the loss in a row of its own.
    links = [name for name in names if name.startswith("link_")]
    return ", ".join(f"{name.removeprefix('link_')} {row[name]:.3g}{_ends(row, name)}" for name in links or names)


def _ends(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if low is None or low != low else f" [{low:.3g}, {high:.3g}]"
