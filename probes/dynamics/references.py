"""Runs to hold another one against, read from paths: which of them can be references, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probes.dynamics.load import load_curves
from probes.dynamics.table import CurveTable
from probes.dynamics.trust import decaying_tasks, judge

_DECAYING_TASKS = 2
"""One task may fall by luck or for its own reasons; runs of which two do teach the wrong end."""


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

    Raises:
        ProbeError: a path cannot be read, or a name is in both.
    """
    further = load_curves(paths)
    both = CurveTable([*further.runs.values(), *table.runs.values()], [*further.curves, *table.curves])
    decaying = decaying_tasks(judge(further))
    left_out = {}
    for name, facts in further.runs.items():
        if not facts.parameters:
            left_out[name] = "its size is unknown: say it in a --runs file, or as a column parameters"
        elif not further.is_finished(name):
            left_out[name] = "it is not at its planned end"
        elif len(tasks := decaying.get(name, ())) >= _DECAYING_TASKS:
            left_out[name] = f"its own scores decay ({', '.join(sorted(tasks)[:3])})"
    return References(both, [name for name in further.runs if name not in left_out], left_out)
