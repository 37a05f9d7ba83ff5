"""Runs to hold another one against: which of those that are named can be references, and why others cannot.

They are named as on the command line: by runs of the table, where `*` stands for anything, by paths, and by published
curves; where none are named, smaller runs of the family are taken. The checks of a single run are `why_not`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from probes.dynamics.decay import decaying_runs
from probes.dynamics.load import PUBLISHED, load_curves
from probes.dynamics.match_shots import match_shots
from probes.dynamics.table import CurveTable

_MOST_LISTED = 12

_FAR_SMALLER = 50.0
"""Times smaller than a run: a reference beyond that teaches it little, and Pythia's smallest teach a wrong end."""


@dataclass(frozen=True, slots=True)
class References:
    """Runs read to hold another one against.

    Attributes:
        table: their curves, with those of the table they were added to.
        names: of those that can be references, in the order in which they were named.
        left_out: of those that cannot, with the reason.
        notes: how the further paths were read.
    """

    table: CurveTable
    names: list[str]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()


def read_references(
    table: CurveTable,
    named: Sequence[str],
    *,
    load: Callable[[Sequence[str]], CurveTable] = load_curves,
    checked: bool = True,
) -> References:
    """The runs that are named: references are those of known size that are finished and do not decay.

    A run that is in the table, too, is as the table has it. Another run of the same name is left out: its curves would
    be taken for those of the one that is judged.

    Args:
        table: of the runs that are judged; its own runs can be named.
        named: names of runs of the table or patterns of them, paths, and names of `PUBLISHED`.
        load: reads the paths, all at once.
        checked: leave out what cannot be a reference; False takes all that is named.

    Raises:
        ProbeError: a name is none of these, a path cannot be read, or a run does not say its number of examples where
            the other side has several.
    """
    of_table, paths = resolve(table, named)
    further = load(paths) if paths else CurveTable([], [])
    new = further.select(runs=[name for name in further.runs if name not in table.runs])
    both = CurveTable([*new.runs.values(), *table.runs.values()], [*new.curves, *table.curves], notes=table.notes)
    left_out = {
        name: "it has the name of another run that is judged: give one of them another name"
        for name in further.runs
        if name in table.runs and not _is_same(table, further, name)
    }
    # A judged run that is read again as a reference is known to its end there.
    whole = CurveTable(
        [*table.runs.values(), *further.runs.values()],
        [*(curve for curve in table if curve.run not in further.runs), *further.curves],
    )
    names = list(dict.fromkeys([*of_table, *further.runs]))
    if checked:
        left_out |= why_not(whole, [name for name in names if name not in left_out])
    usable = [name for name in names if name not in left_out]
    matched = match_shots(both, references=usable) if usable else both
    return References(matched, usable, left_out, (*further.notes, *matched.notes[len(both.notes) :]))


def family_references(table: CurveTable, run: str) -> References:
    """The references of a run for which none are named: smaller runs of its family, smallest first.

    Runs that decay (Pythia's 70M and 160M do, past 100,000 steps) teach a larger one a wrong end: they are left out,
    like those that are not finished, and as long as two others remain those that are fifty times smaller or more.
    """
    own = table.runs[run]
    smaller = [
        name
        for name, facts in table.runs.items()
        if facts.family == own.family and (facts.parameters or np.inf) < (own.parameters or 0.0)
    ]
    left_out = why_not(table, table.by_size(smaller))
    size = own.parameters or 0.0
    far = [
        name for name in smaller if name not in left_out and (table.runs[name].parameters or 0.0) * _FAR_SMALLER <= size
    ]
    if len(smaller) - len(left_out) - len(far) >= 2:
        left_out |= dict.fromkeys(far, f"it is {_FAR_SMALLER:.0f} times smaller or more, and others are nearer")
    return References(table, [name for name in table.by_size(smaller) if name not in left_out], left_out)


def why_not(table: CurveTable, names: Sequence[str]) -> dict[str, str]:
    """Those of the runs that cannot be references, with the reason."""
    finished = [name for name in names if table.runs[name].parameters and table.is_finished(name)]
    decaying = decaying_runs(table, finished)
    reasons = {}
    for name in names:
        if not table.runs[name].parameters:
            reasons[name] = "its size is unknown: say it in a --runs file, or as a column parameters"
        elif not table.is_finished(name):
            reasons[name] = "it is not at its planned end"
        elif name in decaying:
            reasons[name] = f"its own scores decay: {decaying[name].reason}"
    return reasons


def resolve(table: CurveTable, named: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of runs of the table, and paths; a name of the table goes before a path.

    Raises:
        ProbeError: a name is neither.
    """
    of_table: list[str] = []
    paths: list[str] = []
    for text in named:
        matching = [text] if text in table.runs else [name for name in table.runs if fnmatchcase(name, text)]
        if matching:
            of_table += matching
        elif text.startswith("published:") or Path(text).exists():
            paths.append(text)
        else:
            raise ProbeError(_unknown(table, text))
    return list(dict.fromkeys(of_table)), paths


def _unknown(table: CurveTable, text: str) -> str:
    runs = list(table.runs)
    known = ", ".join(runs[:_MOST_LISTED]) + (f" and {len(runs) - _MOST_LISTED} more" if runs[_MOST_LISTED:] else "")
    there = f" Runs in the table: {known}." if runs else ""
    return (
        f"{text} is neither a run in the table nor a path that exists.{did_you_mean(text, runs)}{there} Published "
        f"curves: {', '.join(PUBLISHED)}."
    )


def _is_same(left: CurveTable, right: CurveTable, name: str) -> bool:
    """Whether the runs of this name in two tables have the same scores wherever both were measured."""
    for curve in right.of_run(name):
        other = left.get(name, curve.series)
        if other is not None:
            _, here, there = np.intersect1d(curve.tokens_C, other.tokens_C, return_indices=True)
            if not np.array_equal(curve.value_C[here], other.value_C[there]):
                return False
    return True
