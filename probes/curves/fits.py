"""Scaling laws fitted to runs, what they predict, and what is refused.

What is fitted to what is decided in `probes.dynamics.fit_table`; here the fits become one result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pretrain.errors import ProbeError
from probes.curves.asked import Load, Names, held_against, names_in
from probes.curves.results import Results
from probes.curves.text_table import render_table, series_name

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from probes.dynamics.fit_table import Fitted
    from probes.dynamics.references import References
    from probes.dynamics.table import CurveTable

_NO_PARAMETER = frozenset(
    {
        "family",
        "law",
        "run",
        "task",
        "metric",
        "shots",
        "points",
        "through",
        "at_parameters",
        "at_tokens",
        "predicted",
        "refused",
    }
)
_SHOWN_REFUSALS = 6


class Fits(Results["Fitted"]):
    """Fitted laws with their predictions, and those that are refused with the reason.

    Attributes:
        table: the runs that were fitted.
        records: a `Fitted` for each law and score, run or family.
        level: share of outcomes that intervals are to hold.
        notes: how references were read.
    """

    records: tuple[Fitted, ...]

    def __init__(
        self, table: CurveTable, records: Sequence[Fitted], *, level: float, held: References | None = None
    ) -> None:
        super().__init__(table, records, held=held)
        self.level = level

    def rows(self) -> list[dict[str, Any]]:
        """A row for each fit: its law, parameters with the ends of their intervals, prediction or refusal."""
        return [one.row for one in self.records]

    def text(self) -> str:
        """The good fits with their parameters in words; then what is refused, one line a reason."""
        rows = self.rows()
        ends = [key for key in rows[0] if key.startswith(("low_", "high_"))]
        good = [row for row in rows if not row["refused"]]
        columns = ["family", "law", "run", "task", "metric", "shots", "points", "fit", "at_parameters", "at_tokens"]
        columns = [
            name
            for name in [*columns, "predicted", *ends]
            if name == "fit" or any(row.get(name) is not None for row in good)
        ]
        lines = [render_table([{**row, "fit": _parameters(row)} for row in good], columns=columns)] if good else []
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """What is refused, a sentence for each reason, after how references were read."""
        rows, told = self.rows(), super().remarks()
        for reason in dict.fromkeys(row["refused"] for row in rows if row["refused"]):
            names = [_name(row, rows) for row in rows if row["refused"] == reason]
            shown = ", ".join(names[:_SHOWN_REFUSALS]) + (", …" if len(names) > _SHOWN_REFUSALS else "")
            told.append(f"refused, {len(names)}: {reason} {shown}")
        return told

    def plot(self, *, limit: int = 24) -> Figure:
        """The points of each fit, the law with its interval, and the prediction."""
        from probes.curves.draw.fits import draw_fits

        return draw_fits(self, limit=limit)


def fit(
    table: CurveTable,
    *,
    law: str = "auto",
    link: str = "sigmoid",
    parameters: float | None = None,
    tokens: float | None = None,
    references: Names = None,
    without: Names = None,
    task: Names = None,
    metric: Names = None,
    draws: int = 200,
    level: float = 0.8,
    rates: Mapping[str, np.ndarray] | None = None,
    load: Load | None = None,
) -> Fits:
    """Fits scaling laws, predicts from them, and refuses those that mean nothing.

    Args:
        table: the curves, from `load`.
        law: a name of `probes.dynamics.laws.LAWS`; `auto` takes the form that errs least on the largest and longest
            runs, or each run's law in tokens where there are fewer than three sizes.
        link: from a task's loss to its score: `sigmoid`, `soft-log` or `exponential`.
        parameters: size to predict for; needs `tokens`.
        tokens: length to predict for; of single runs their planned end unless given.
        references: fit these runs only: names of runs in the table (`*` stands for anything), files and folders, or
            published curves.
        without: leave these runs out; `*` stands for anything.
        task: only these tasks.
        metric: only these metrics.
        draws: resampled fits for intervals; 0 for none.
        level: share of outcomes that intervals are to hold, above 0 and below 1.
        rates: planned learning rates of every step by run, for the annealing laws; of other runs those that the table
            holds are used.
        load: reads the paths among `references`, where they need more than their names.

    Raises:
        ProbeError: an argument is out of range, a run is not there, or nothing can be fitted.
    """
    from probes.dynamics.fit_table import WantedFits, fit_all
    from probes.dynamics.laws import LAWS
    from probes.dynamics.link import LINKS

    _check(level=level, draws=draws, parameters=parameters, tokens=tokens)
    for name, there, option in ((law, ("auto", *LAWS), "--law"), (link, LINKS, "--link")):
        if name not in there:
            raise ProbeError(f"{option} {name} is unknown. Allowed: {', '.join(there)}.")
    held = held_against(table, references, load, checked=False)
    if held is not None:
        table = held.table
    table = _chosen(table, held.names if held is not None else None, names_in(without))
    wanted = WantedFits(
        law=law,
        link=link,
        tasks=names_in(task),
        metrics=names_in(metric),
        parameters=parameters,
        tokens=tokens,
        draws=draws,
        level=level,
        rates=rates or {},
    )
    return Fits(table, fit_all(table, wanted), level=level, held=held)


def _check(*, level: float, draws: int, parameters: float | None, tokens: float | None) -> None:
    if not 0 < level < 1:
        raise ProbeError(f"--level {level:g} is no share of outcomes. Give one above 0 and below 1, as 0.8.")
    if draws < 0:
        raise ProbeError(f"--draws {draws} is negative. Give 0 for no intervals, or some hundred.")
    for name, value in (("parameters", parameters), ("tokens", tokens)):
        if value is not None and not value > 0:
            raise ProbeError(f"--{name} {value:g} is not above 0. Give a count, as 7e9.")
    if parameters is not None and tokens is None:
        raise ProbeError(f"--parameters {parameters:g} is given without --tokens. A place is both; add --tokens.")


def _chosen(table: CurveTable, references: Sequence[str] | None, without: Sequence[str]) -> CurveTable:
    """The table with the references, or with all runs, without those whose names match.

    Raises:
        ProbeError: a pattern matches no run, or none is left.
    """
    for pattern in without:
        if not any(fnmatchcase(name, pattern) for name in table.runs):
            raise ProbeError(f"{pattern} is the name of no run. There are: {', '.join(table.by_size(table.runs))}.")
    kept = [
        name
        for name in (table.runs if references is None else references)
        if not any(fnmatchcase(name, pattern) for pattern in without)
    ]
    if not kept:
        raise ProbeError("--without leaves no run. Leave out fewer.")
    return table.select(runs=kept)


def _name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if not row["task"]:
        return str(row["run"])
    of_run = f" of {row['run']}" if row.get("run") else ""
    of_run += f" of {row['family']}" if row.get("family") else ""
    return f"{series_name(row, rows)}{of_run}"


def _parameters(row: Mapping[str, Any]) -> str:
    """The parameters with the ends of their intervals."""
    names = [
        key
        for key in row
        if key not in _NO_PARAMETER and not key.endswith(("_low", "_high")) and not key.startswith(("low_", "high_"))
    ]
    # A chained row's law is that of the loss in a row of its own.
    links = [name for name in names if name.startswith("link_")]
    return ", ".join(f"{name.removeprefix('link_')} {row[name]:.3g}{_ends(row, name)}" for name in links or names)


def _ends(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if low is None or low != low else f" [{low:.3g}, {high:.3g}]"
