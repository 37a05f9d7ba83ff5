"""The families in a table of runs: a scaling law describes runs that share data and recipe, and no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from probes.dynamics.table import CurveTable


@dataclass(frozen=True, slots=True)
class Families:
    """A table in parts.

    Attributes:
        parts: a table for each family; the whole one under an empty name where there is one family to fit at most.
        left_out: runs that are in no part, with the reason.
    """

    parts: Mapping[str, CurveTable]
    left_out: Mapping[str, str]


def of_families(table: CurveTable, *, num_sizes: int) -> Families:
    """Parts the table where several families have finished runs of so many sizes.

    Families that go by the names of runs alone (`a`, `b`, `c` are three) are not told apart: the table stays whole
    where fewer than two have the sizes for a law.
    """
    sizes: dict[str, set[float]] = defaultdict(set)
    for name, facts in table.runs.items():
        if facts.parameters and table.is_finished(name):
            sizes[facts.family].add(facts.parameters)
    fitted = [family for family, found in sizes.items() if len(found) >= num_sizes]
    if len(fitted) < 2:
        return Families({"": table}, {})
    parts = {
        family: table.select(runs=[name for name, facts in table.runs.items() if facts.family == family])
        for family in fitted
    }
    reason = (
        f"its family has no finished runs of {num_sizes} sizes, while others do, and each family has its own law. Name "
        f"another family in the column family, or --without this run."
    )
    left_out = {name: reason for name, facts in table.runs.items() if facts.family not in parts}
    return Families(parts, left_out)
