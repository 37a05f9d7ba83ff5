"""What `python -m probes compare RUN --original NAME` prints and writes: a run beside a published original.

No command of its own; `compare` calls it. The comparison is `probes.dynamics.beside_original`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pretrain.arguments import written_path
from pretrain.errors import ProbeError
from probes.commands.show_table import loader, print_table, write_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from probes.dynamics.beside_original import Beside
    from probes.dynamics.table import CurveTable

_MOST_ROWS = 40
_SHOWN = ("task", "metric", "shots", "tokens", "value", "stderr", "original", "difference", "band", "verdict")


def add_original_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--original` and `--original-run`."""
    parser.add_argument(
        "--original",
        action="append",
        type=written_path,
        metavar="NAME",
        help="put runs beside what was published of amber, openllama_{3b,7b,13b}_v1 or openllama_{3b,7b}_v2, or of any "
        "path that can be read",
    )
    parser.add_argument("--original-run", metavar="NAME", help="which run of that path, where it holds several")


def print_beside(table: CurveTable, runs: Sequence[str], options: argparse.Namespace) -> int:
    """Prints each run beside each original, task by task, and writes all checkpoints.

    Raises:
        ProbeError: an original is unknown, or no score was measured as it was.
    """
    from probes.dynamics.beside_original import LEVEL, sentence, summary

    rows: list[dict[str, Any]] = []
    every = beside_originals(table, runs, options)
    for found in every:
        print(f"{found.run} beside {found.original.title} at equal tokens:")
        for task in found.tasks:
            print(f"  {sentence(task)}")
        for reason in dict.fromkeys(found.refused.values()):
            refused = ", ".join(str(series) for series, told in found.refused.items() if told == reason)
            print(f"  not compared: {refused}: {reason}")
        for remark in (*found.remarks, *found.original.notes):
            print(f"  Note: {remark}")
        print(f"{summary(found)}\n")
        of_run = beside_rows(found)
        print_table(_shown(of_run), columns=_SHOWN)
        if len(of_run) > _MOST_ROWS:
            print("The latest checkpoint of each score; --output FILE writes them all.")
        print(f"band: half width of what noise and rounding do to a difference with {LEVEL:.0%}.\n")
        rows += of_run
    if options.output is not None:
        write_rows(rows, options.output, figure=lambda: _figure(every))
    return 0


def _figure(found: Sequence[Beside]) -> Figure:
    from probes.curves.draw.beside import draw_beside

    return draw_beside(found)


def beside_originals(table: CurveTable, runs: Sequence[str], options: argparse.Namespace) -> list[Beside]:
    """Each run beside each original that the options name; paths are read with the facts that they tell.

    Raises:
        ProbeError: an original is unknown, or no score was measured as it was.
    """
    from probes.dynamics.beside_original import put_beside
    from probes.dynamics.originals import find_original

    found = []
    for name in options.original:
        original = find_original(name, run=options.original_run, load=loader(options))
        for run in [run for run in runs if run != original.facts.name or len(runs) == 1]:
            beside = put_beside(table, run, original)
            if not beside.tasks:
                reasons = "\n".join(f"  {series}: {reason}" for series, reason in beside.refused.items())
                raise ProbeError(
                    f"{run} has no score that was measured as {original.title}'s at a checkpoint that can be "
                    f"compared:\n{reasons}{_remedy(name)}"
                )
            found.append(beside)
    return found


def beside_rows(found: Beside) -> list[dict[str, Any]]:
    """A row for each checkpoint of each score."""
    return [
        {
            "run": found.run,
            "beside": found.original.key,
            "task": task.series.task,
            "metric": task.series.metric,
            "shots": task.series.num_fewshot if task.series.num_fewshot >= 0 else None,
            "step": int(task.step_K[place]) if task.step_K[place] >= 0 else None,
            "tokens": float(task.tokens_K[place]),
            "value": float(task.value_K[place]),
            "stderr": float(task.stderr_K[place]),
            "original": float(task.original_K[place]),
            "difference": float(task.difference_K[place]),
            "band": float(task.half_K[place]),
            "verdict": verdict,
            "mean_difference": task.mean_difference,
            "in_bands": task.in_bands,
            "p_holm": task.adjusted,
            "task_verdict": task.verdict,
        }
        for task in found.tasks
        for place, verdict in enumerate(task.verdicts)
    ]


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, or of each score the latest."""
    if len(rows) <= _MOST_ROWS:
        return rows
    return list({(row["task"], row["metric"], row["shots"]): row for row in rows}.values())


def _remedy(name: str) -> str:
    suite = name.partition("_")[0]
    told = f"\nScore it as the original was: python -m probes score RUN suite={suite}."
    return told if suite in ("amber", "openllama") else ""
