"""Tables of the commands: the arguments that name what is read and where the result is written, and printing.

No command of its own; `predict`, `compare`, `trust`, `fit` and `state` share it. What the rows hold is for them; how
they are aligned is in `probes.curves.text_table`, how they are written in `probes.curves.files`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.arguments import count_of, written_path
from probes.curves.files import FIGURE_ENDINGS, ROW_ENDINGS, either, write_rows
from probes.curves.text_table import render_table, series_name

if TYPE_CHECKING:
    from probes.dynamics.table import CurveTable

__all__ = ["print_table", "render_table", "series_name", "share", "table_of", "write_rows"]

_OUTPUT = f"also write the result: its rows as {either(ROW_ENDINGS)}, or a figure as {either(FIGURE_ENDINGS)}"


def add_table_arguments(parser: argparse.ArgumentParser, *, output: str = _OUTPUT) -> None:
    """Adds what every command over a table of curves takes: where it is read from, where its rows are written.

    Args:
        parser: of the command.
        output: what `--output FILE` is, for its help.
    """
    parser.add_argument(
        "paths",
        nargs="+",
        type=written_path,
        metavar="PATH",
        help="run directories, folders of lm-eval results, CSV or Parquet files, published:pythia, "
        "published:pythia-deduped, published:pythia-interventions, published:pythia-batch-sizes, "
        "published:olmo-ladder, published:amber, published:openllama, published:finals",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    parser.add_argument(
        "--tokens-per-step",
        type=count_of("tokens"),
        metavar="N",
        help="tokens of a step, where records name steps only",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="a CSV of facts the records lack: run, parameters, total_tokens, tokens_per_step, family",
    )
    parser.add_argument(
        "--chance",
        type=task_chance,
        action="append",
        default=[],
        metavar="TASK=SHARE",
        help="the score of guessing of a task, or of all whose names begin so, where records do not tell it: mine=0.25",
    )


def task_chance(text: str) -> tuple[str, float]:
    """A task and its score of guessing, for argparse: `mine=0.25`."""
    task, _, number = text.partition("=")
    try:
        chance = float(number)
    except ValueError:
        chance = -1.0
    if not task or not 0.0 <= chance < 1.0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no task with its score of guessing, from 0 to below 1: mine=0.25"
        )
    return task, chance


def share(text: str) -> float:
    """A share of a run, for argparse: above 0 and below 1."""
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and below 1, such as 0.3")
    return value


def table_of(options: argparse.Namespace) -> CurveTable:
    """The table that the arguments of `add_table_arguments` name. Prints what is to be said of how it was read.

    Raises:
        ProbeError: a path that cannot be read, runs that cannot be told apart, or `--chance` of no task of the table.
    """
    from probes.dynamics.told_chance import require_tasks, unknown_chance

    table = loader(options)(options.paths)
    require_tasks(table, dict(options.chance))
    unknown = unknown_chance(table)
    for note in (*table.notes, *([unknown] if unknown else []), *_unused_lines(table, options)):
        print(f"Note: {note}")
    return table


def _unused_lines(table: CurveTable, options: argparse.Namespace) -> list[str]:
    """What is to be said of lines of `--runs` that are of no run of the paths, the references or the originals."""
    if options.runs is None:
        return []
    from probes.dynamics.load import read_runs_file
    from probes.dynamics.originals import ORIGINALS
    from probes.dynamics.references import resolve

    told = read_runs_file(options.runs)
    _, further = resolve(table, getattr(options, "references", None) or [])
    further += [name for name in getattr(options, "original", None) or [] if name not in ORIGINALS]
    if not further or not told.unused(table.runs):
        return told.unused(table.runs)
    return told.unused([*table.runs, *loader(options)(further).runs])


def loader(options: argparse.Namespace) -> Callable[[Sequence[str]], CurveTable]:
    """Reads paths with what the options tell of runs; further paths of a command are read with the same facts.

    Raises:
        ProbeError: the file of `--runs` cannot be read.
    """
    from probes.dynamics.load import load_curves, read_runs_file

    told = read_runs_file(options.runs) if options.runs is not None else None
    return partial(
        load_curves,
        tokens_per_step=options.tokens_per_step,
        facts=told.facts if told else None,
        tokens_per_step_of=told.tokens_per_step if told else None,
        chance=dict(options.chance),
    )


def print_table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None) -> None:
    """Prints rows as `render_table` gives them."""
    print(render_table(rows, columns=columns))
