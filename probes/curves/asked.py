"""What a caller asks for, by names: given singly or as a list, and refused with the nearest right one if not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError

if TYPE_CHECKING:
    from probes.dynamics.references import References
    from probes.dynamics.table import CurveTable

Names = str | Sequence[str] | None
"""One name, several, or None for all."""
Load = Callable[[Sequence[str]], "CurveTable"]
"""Reads paths into one table."""


def names_in(names: Names) -> list[str]:
    """The names as a list, none for None."""
    return [names] if isinstance(names, str) else list(names or ())


def known(names: Names, there: Iterable[str], option: str, *, what: str = "run") -> list[str]:
    """The names as a list.

    Args:
        names: what is asked for.
        there: what there is.
        option: as the commands spell it, for the error.
        what: is named.

    Raises:
        ProbeError: one is not there; names the nearest right one.
    """
    present = list(there)
    for name in names_in(names):
        if name not in present:
            raise ProbeError(
                f"{option} {name}: there is no such {what}.{did_you_mean(name, present)} Known: {', '.join(present)}."
            )
    return names_in(names)


def held_against(
    table: CurveTable, references: Names, load: Load | None = None, *, checked: bool = True
) -> References | None:
    """The runs that are named to hold others against; None where none are named.

    Args:
        table: of the runs that are judged.
        references: names of its runs, where `*` stands for anything, paths, or published curves.
        load: reads paths; as they are unless given.
        checked: leave out what cannot be a reference; False takes all that is named.

    Raises:
        ProbeError: a name is neither a run nor a path, or a path cannot be read.
    """
    if not names_in(references):
        return None
    from probes.dynamics.load import load_curves
    from probes.dynamics.references import read_references

    return read_references(table, names_in(references), load=load or load_curves, checked=checked)
