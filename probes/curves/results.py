"""What every result of `probes.curves` can do: be counted, tabulated, shown, drawn and written.

The results themselves stand beside their functions. pandas and matplotlib are imported when they are asked for.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from probes.curves.files import write_rows
from probes.curves.text_table import plain

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from probes.dynamics.references import References
    from probes.dynamics.table import CurveTable

T = TypeVar("T")


class Results(Sequence[T], ABC, Generic[T]):
    """A list of findings, each an object with documented attributes.

    Args:
        table: the curves they were made from.
        records: the findings.
        held: the runs that they were held against, where some were named.
    """

    def __init__(self, table: CurveTable, records: Iterable[T], *, held: References | None = None) -> None:
        self.table = table
        self.records: tuple[T, ...] = tuple(records)
        self.references = held.names if held is not None else None
        self.left_out = held.left_out if held is not None else {}
        self.notes = held.notes if held is not None else ()

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """One mapping for each row that `to_pandas` and files have; what is refused is among them, with the reason."""

    @abstractmethod
    def text(self) -> str:
        """The result in words and aligned columns, as the command prints it."""

    @abstractmethod
    def plot(self, *, limit: int = 24) -> Figure:
        """Draws the result.

        Args:
            limit: most panels; what is left out is said in the figure.

        Returns:
            A matplotlib figure that belongs to nobody: show it as a notebook's last value, or `savefig` it.
        """

    def remarks(self) -> list[str]:
        """Sentences on how references were read, and on what is left out or refused and why."""
        left_out = [f"{name} is no reference: {reason}." for name, reason in self.left_out.items()]
        return [*(f"Note: {note}" for note in self.notes), *left_out]

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame, unrounded; what is unknown is missing."""
        return frame_of(self.rows())

    def write(self, path: str | Path) -> None:
        """Writes the rows (`.csv`, `.parquet`, `.json`) or the figure (`.png`, `.svg`); the file is replaced whole.

        Raises:
            ProbeError: another ending, or the file cannot be written.
        """
        write_rows(self.rows(), Path(path), figure=self.plot)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.records[index]

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """A data frame and the remarks, for notebooks."""
        told = "".join(f"<li>{html.escape(remark)}</li>" for remark in self.remarks())
        return self.to_pandas()._repr_html_() + (f"<ul>{told}</ul>" if told else "")


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Rows as a data frame, unrounded; what is unknown is missing."""
    import pandas

    return pandas.DataFrame([{name: plain(cell) for name, cell in row.items()} for row in rows])
