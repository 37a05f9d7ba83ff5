"""Writes a page about one run, or one that compares runs, and prints a table.

  python -m probes report runs/demo
  python -m probes report runs/small runs/large --output comparison.html
  python -m probes report scores.csv runs/mine published:pythia
  python -m probes report runs/amber_7b --original amber      # beside the published scores, with bands

One run directory alone has its page in the run, report.html. Everything else (several runs, folders of lm-eval's
results, tables of scores, published curves) is compared in one page, comparison.html; with a published original among
them, or named by --original, the page begins with the runs beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config.nearest import nearest
from pretrain.errors import ProbeError
from pretrain.locate import run_of
from probes.commands.beside_original import add_original_arguments, beside_originals
from probes.commands.show_table import add_table_arguments, print_table, table_of
from probes.store import PROBES_FILE

if TYPE_CHECKING:
    from probes.report.compare_page import Comparison

HELP = "write one HTML page about a run, or about several, and print a table"

_RUN_FILES = ("metrics.jsonl", PROBES_FILE, "config.yaml")
_COMPARISON = Path("comparison.html")
_MOST_ROWS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_table_arguments(parser, output="the page; report.html in the run, comparison.html for several")
    add_original_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the page and prints the table.

    Raises:
        FinelineError: there is no run, or its files cannot be read.
    """
    paths = [run_of(Path(path)) for path in options.paths]
    for path in paths:
        if not path.exists() and not str(path).startswith("published:"):
            run_directory(path)
    if len(paths) == 1 and not options.original and (_holds_run(paths[0]) or _is_empty_of_json(paths[0])):
        return _report(run_directory(paths[0]), options.output)
    table = table_of(options)
    output = options.output or _COMPARISON
    from probes.dynamics.originals import hints, pairs_in, with_originals
    from probes.report.compare_page import compare, write

    beside = None
    if options.original:
        beside = beside_originals(table, list(table.runs), options)
        table = with_originals(table, [one.original for one in beside])
    comparison = compare(table, beside=beside)
    shown = {(one.run, one.original.key) for one in comparison.beside}
    missing = [pair for pair in pairs_in(table) if beside is None and pair not in shown]
    for run, key in missing:
        print(f"{run} is not beside the original on this page: python -m probes compare … --original {key} says why.")
    for hint in [] if shown or missing else hints(table, list(table.runs)):
        print(hint)
    write(comparison, output)
    print_table(_rows(comparison))
    left_out = len(comparison.table.runs) - _MOST_ROWS
    print((f"and {left_out} more runs\n" if left_out > 0 else "") + f"\nreport: {output}")
    return 0


def run_directory(path: Path) -> Path:
    """The run directory that a path names: itself, or the run of its checkpoints.

    Raises:
        ProbeError: it does not; names the runs nearby.
    """
    run = run_of(path)
    if _holds_run(run):
        return run
    nearby = [folder for parent in {path.parent, path, Path("runs")} for folder in _runs_in(parent)]
    names = {str(folder) for folder in nearby}
    close = nearest(str(path), names) or sorted(names)[:10]
    known = f"Runs nearby: {', '.join(close)}." if close else "There are no runs nearby either."
    reason = "holds no run: none of " + ", ".join(_RUN_FILES) if path.is_dir() else "does not exist"
    raise ProbeError(f"The run directory {path} {reason}. {known}")


def _report(directory: Path, output: Path | None) -> int:
    """The page of one run."""
    output = output or directory / "report.html"
    from probes.report.html import write_report
    from probes.report.table import summary_table

    write_report(directory, output)
    print(summary_table(directory))
    for hint in _hints(directory):
        print(f"\n{hint}")
    print(f"\nreport: {output}")
    return 0


def _hints(directory: Path) -> list[str]:
    """Which original the run can be put beside, by what its configuration and events tell."""
    from probes.dynamics.originals import hints
    from probes.dynamics.table import CurveTable, RunFacts
    from probes.report.run_files import RunFiles, read_config, read_events

    told = RunFiles(
        directory=directory,
        config=read_config(directory)[0],
        config_text="",
        rows=(),
        curves=(),
        events=read_events(directory),
    )
    facts = RunFacts(name=told.name, parameters=told.parameters, total_tokens=told.total_tokens)
    return hints(CurveTable([facts], []), [facts.name])


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Size, length and mean scores of the runs compared, as in the page."""
    table, panels = comparison.table, comparison.panels
    rows = []
    for name in table.by_size(table.runs)[:_MOST_ROWS]:
        facts = table.runs[name]
        means = {panel.domain: float(mean.value_C[-1]) for panel in panels for mean in panel.means if mean.run == name}
        rows.append({"run": name, "parameters": facts.parameters, "tokens": table.last_tokens(name), **means})
    return rows


def _holds_run(path: Path) -> bool:
    return any((path / name).is_file() for name in _RUN_FILES)


def _is_empty_of_json(path: Path) -> bool:
    """Whether a folder cannot be one of lm-eval's results: a mistyped run directory, most likely."""
    return path.is_dir() and next(path.rglob("*.json"), None) is None


def _runs_in(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return [child for child in parent.iterdir() if _holds_run(child)]
