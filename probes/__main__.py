"""`python -m probes report RUN`: the report page of a finished or running run.

Only the command line; what a page shows is for `probes.report`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.config.nearest import nearest
from pretrain.errors import FinelineError, ProbeError
from probes.store import PROBES_FILE

_RUN_FILES = ("metrics.jsonl", PROBES_FILE, "config.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code: 0, or that of the error, whose message alone is printed.
    """
    parsed = _parser().parse_args(arguments)
    try:
        directory = _run_directory(parsed.run)
        output = parsed.output or directory / "report.html"
        from probes.report.html import write_report
        from probes.report.table import summary_table

        write_report(directory, output)
        print(summary_table(directory))
    except FinelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\nreport: {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m probes", description="What is known of a run's downstream tasks.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="write one HTML page about a run, and print a table")
    report.add_argument("run", type=Path, metavar="RUN", help="a run directory, such as runs/demo")
    report.add_argument("--output", type=Path, metavar="FILE", help="the page; report.html in the run")
    return parser


def _run_directory(path: Path) -> Path:
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


if __name__ == "__main__":
    sys.exit(main())
