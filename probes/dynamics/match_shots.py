"""Scores whose record does not say how many examples were in the prompt, matched with those of other runs that do.

Curves are compared at one number of examples. A table without a column `shots` has none, and would never be compared
with anything; where other runs have the task and metric at one number alone, that is taken, and said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace

from pretrain.errors import ProbeError
from probes.dynamics.columns import listed
from probes.dynamics.table import CurveTable

_UNKNOWN = -1


def match_shots(table: CurveTable, *, references: Collection[str] | None = None) -> CurveTable:
    """The table with numbers of examples filled in where other runs tell them.

    Args:
        table: runs that are to be compared.
        references: runs that the others are held against; only numbers of the other side count then, and where that has
            several the table is refused. By default all runs are compared with each other, and several are said.

    Returns:
        The table, its notes with what was filled in, and what could not be.

    Raises:
        ProbeError: with `references`, a run could be matched at several numbers of examples.
    """
    known: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    own: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for curve in table:
        own[curve.run, curve.task, curve.metric].add(curve.num_fewshot)
        if curve.num_fewshot != _UNKNOWN:
            known[curve.task, curve.metric][curve.num_fewshot].append(curve.run)
    filled: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    several: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    curves = []
    for curve in table:
        runs_at = {
            shots: others
            for shots, runs in known[curve.task, curve.metric].items()
            if (others := [run for run in runs if run != curve.run and _are_compared(run, curve.run, references)])
        }
        tells = own[curve.run, curve.task, curve.metric] != {_UNKNOWN}
        if tells or not runs_at:
            curves.append(curve)
            continue
        first = next(iter(runs_at.values()))[0]
        if len(runs_at) > 1:
            several[curve.run, tuple(sorted(runs_at)), first].append(f"{curve.task} ({curve.metric})")
            curves.append(curve)
            continue
        (shots,) = runs_at
        filled[curve.run, shots, first].append(f"{curve.task} ({curve.metric})")
        curves.append(replace(curve, num_fewshot=shots))
    notes = [
        f"{run} does not say how many examples were in its prompts: taken as {shots}-shot, as in {other}, "
        f"{'is' if len(series) == 1 else 'are'} {listed(series)}."
        for (run, shots, other), series in filled.items()
    ]
    for (run, numbers, other), series in several.items():
        said = (
            f"{run} does not say how many examples were in its prompts, and {other} has {listed(series)} with "
            f"{' and '.join(map(str, numbers))}. Add a column shots to its table."
        )
        if references is not None:
            raise ProbeError(said)
        notes.append(f"{said} Until then they are not compared.")
    return CurveTable(table.runs.values(), curves, notes=(*table.notes, *notes))


def _are_compared(left: str, right: str, references: Collection[str] | None) -> bool:
    return references is None or (left in references) != (right in references)
