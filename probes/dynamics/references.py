"""Runs to hold another one against, read from paths: which of them can be references, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.dynamics.load import load_curves
from probes.dynamics.table import CurveTable
from probes.dynamics.trust import DECAYING_TASKS, decaying_tasks, judge


@dataclass(frozen=True, slots=True)
class References:
    """Runs read to hold another one against.

    Attributes:
        table: their curves, with those of the table they were added to.
        names: of those that can be references.
        left_out: of those that cannot, with the reason.
    """

    table: CurveTable
    names: list[str]
    left_out: dict[str, str]


def read_references(table: CurveTable, paths: Sequence[str]) -> References:
    """The runs of further paths: references are those of known size that are finished and do not decay.

    A run that is in the table, too, is as the table has it. Another run of the same name is left out: its curves would
    be taken for those of the one that is judged.

    Raises:
        ProbeError: a path cannot be read.
    """
    further = load_curves(paths)
    new = further.select(runs=[name for name in further.runs if name not in table.runs])
    both = CurveTable([*new.runs.values(), *table.runs.values()], [*new.curves, *table.curves])
    decaying = decaying_tasks(judge(further))
    left_out = {}
    for name, facts in further.runs.items():
        if name in table.runs and not _is_same(table, further, name):
            left_out[name] = "it has the name of another run that is judged: give one of them another name"
        elif not facts.parameters:
            left_out[name] = "its size is unknown: say it in a --runs file, or as a column parameters"
        elif not further.is_finished(name):
            left_out[name] = "it is not at its planned end"
        elif len(tasks := decaying.get(name, ())) >= DECAYING_TASKS:
            left_out[name] = f"its own scores decay ({', '.join(sorted(tasks)[:3])})"
    return References(both, [name for name in further.runs if name not in left_out], left_out)


def _is_same(left: CurveTable, right: CurveTable, name: str) -> bool:
    """Whether the runs of this name in two tables have the same scores wherever both were measured."""
    for curve in right.of_run(name):
        other = left.get(name, curve.series)
        if other is not None:
            _, here, there = np.intersect1d(curve.tokens_C, other.tokens_C, return_indices=True)
            if not np.array_equal(curve.value_C[here], other.value_C[there]):
                return False
    return True
