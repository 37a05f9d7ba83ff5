"""Reads curves of scores into one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.dynamics.table import CurveTable, RunFacts


def load(
    *paths: str | Path,
    tokens_per_step: float | None = None,
    runs: str | Path | Mapping[str, RunFacts] | None = None,
    chance: Mapping[str, float] | None = None,
) -> CurveTable:
    """Reads runs and their scores.

    Args:
        paths: run directories, folders of lm-eval's results, tables of scores (CSV, TSV, JSON lines, Parquet, W&B's
            exports), and names of published curves such as `published:pythia`.
        tokens_per_step: tokens of an optimizer step, where records name steps only.
        runs: what the records lack of runs, stronger than what they say: a CSV file with the column `run` and any of
            `parameters`, `total_tokens`, `tokens_per_step` and `family`, or facts by the run's name. What is said of
            runs that are not read is a note.
        chance: scores of guessing by task, or by how the names of tasks begin, stronger than what records say.

    Returns:
        The table: `table.runs` has the facts by name, `table.to_pandas()` one row per score; `table.notes` says what
        was converted or left out.

    Raises:
        ProbeError: a path is none of these or cannot be read, or runs cannot be told apart.
    """
    from probes.dynamics.load import RunsFile, load_curves, read_runs_file

    told = RunsFile({}, {})
    if isinstance(runs, str | Path):
        told = read_runs_file(Path(runs))
    elif runs is not None:
        told = RunsFile(dict(runs), {})
    table = load_curves(
        paths,
        tokens_per_step=tokens_per_step,
        facts=told.facts,
        tokens_per_step_of=told.tokens_per_step,
        chance=chance,
    )
    table.notes += tuple(told.unused(table.runs))
    return table
