"""`python -m probes report RUN`: the report page of a finished or running run.

Only the command line; what a page shows is for `probes.report`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pretrain.config.nearest import nearest
from pretrain.errors import ProbeError
from probes.store import PROBES_FILE

HELP = "write one HTML page about a run, and print a table"

_RUN_FILES = ("metrics.jsonl", PROBES_FILE, "config.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run directory, such as runs/demo")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page; report.html in the run")


def run(options: argparse.Namespace) -> int:
    """Writes the page and prints the table.

    Raises:
        FinelineError: there is no run, or its files cannot be read.
    """
    directory = run_directory(options.run_directory)
    output = options.output or directory / "report.html"
    from probes.report.html import write_report
    from probes.report.table import summary_table

    write_report(directory, output)
    print(summary_table(directory))
    print(f"\nreport: {output}")
    return 0


def run_directory(path: Path) -> Path:
    """The path, if a run lies there.

    Raises:
        ProbeError: it does not; names the runs nearby.
    """
    if any((path / name).is_file() for name in _RUN_FILES):
        return path
    nearby = [folder for parent in {path.parent, path, Path("runs")} for folder in _runs_in(parent)]
    names = {str(folder) for folder in nearby}
    close = nearest(str(path), names) or sorted(names)[:10]
    known = f"Runs nearby: {', '.join(close)}." if close else "There are no runs nearby either."
    reason = "holds no run: none of " + ", ".join(_RUN_FILES) if path.is_dir() else "does not exist"
    raise ProbeError(f"The run directory {path} {reason}. {known}")


def _runs_in(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return [child for child in parent.iterdir() if any((child / name).is_file() for name in _RUN_FILES)]
