"""`python -m probes fit PATH…`: scaling laws over runs, what they predict, and what is refused.

Only the command line; what it does is `probes.curves.fit`, the laws are `probes.dynamics.laws`.

  python -m probes fit runs/*  --parameters 7e9 --tokens 4e12      # two steps: size and tokens to loss, loss to score
  python -m probes fit table.csv --parameters 7e9 --tokens 140e9   # one row a final model, task and metric is enough
  python -m probes fit runs/mine                                   # one run's own future, by a law in tokens
  python -m probes fit runs/mine runs/shorter --law annealing      # knows the learning rates, so also a WSD's tail
  python -m probes fit published:olmo-ladder --without "*-rerun" "peteish*" --parameters 6.9e9 --tokens 3.9e12
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.arguments import count_of
from probes.commands.references import add_references_argument
from probes.commands.show_table import add_table_arguments, loader, table_of

if TYPE_CHECKING:
    import numpy as np

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
    from probes import curves

    paths = [*options.paths, *(options.references or [])]
    found = curves.fit(
        table_of(options),
        law=options.law,
        link=options.link,
        parameters=options.parameters,
        tokens=options.tokens,
        references=options.references,
        without=options.without,
        task=options.task,
        metric=options.metric,
        draws=options.draws,
        level=options.level,
        rates=_planned_rates(paths) if options.law.startswith("annealing") else None,
        load=loader(options),
    )
    print(found)
    if options.output is not None:
        found.write(options.output)
    return 0


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
