"""Where runs stand: healthy, to be watched, to be acted on, or unknown, with the evidence.

The rules are `probes.dynamics.state`; here the verdicts of several runs become one result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pretrain.errors import ProbeError
from probes.curves.asked import Load, Names, held_against, known
from probes.curves.results import Results
from probes.curves.text_table import render_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from probes.dynamics.references import References
    from probes.dynamics.state import State
    from probes.dynamics.table import CurveTable

_COLUMNS = ("domain", "verdict", "change", "level", "task", "shots", "seen", "expected")


class States(Results["State"]):
    """The state of each run at its latest checkpoint.

    Attributes:
        table: all that was read.
        seen: by run, what was known when it was judged.
        records: a `State` for each run.
        references: names of the runs that were to be held against; None if they were chosen.
        left_out: runs that were named as references, or are smaller runs of a run's family, but cannot be any, with
            the reason.
    """

    records: tuple[State, ...]

    def __init__(
        self,
        table: CurveTable,
        records: Sequence[State],
        *,
        seen: Mapping[str, CurveTable],
        held: References | None = None,
    ) -> None:
        super().__init__(table, records, held=held)
        self.seen = dict(seen)
        self.left_out = self.left_out | {
            name: reason for one in self.records for name, reason in one.no_references.items()
        }

    @property
    def verdict(self) -> str:
        """The gravest of all runs: act, then watch, then unknown, then healthy."""
        from probes.dynamics.evidence import gravest

        return gravest(one.verdict for one in self.records)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each task of each domain: seen, expected, and the verdicts of domain and run."""
        from probes.dynamics.state import state_rows

        return [row for state in self.records for row in state_rows(state)]

    def text(self) -> str:
        """One verdict a run, its evidence and its domains, then what the figures mean."""
        from probes.dynamics.explain_state import figures_explained
        from probes.dynamics.state import state_rows

        lines = super().remarks()
        for state in self.records:
            lines += self._verdict_lines(state)
            rows = state_rows(state)
            if rows:
                lines.append(render_table(rows, columns=_COLUMNS))
            lines.append("")
        if any(math.isfinite(row["change"]) or math.isfinite(row["level"]) for row in self.rows()):
            lines += figures_explained()
        return "\n".join(lines)

    def remarks(self) -> list[str]:
        """The verdict of each run with its evidence, after the references that were left out."""
        return [*super().remarks(), *(line.strip() for state in self.records for line in self._verdict_lines(state))]

    def plot(self, *, limit: int = 24) -> Figure:
        """The scores of each judged task, what was expected at the latest checkpoint with its band, and the verdict."""
        from probes.curves.draw.states import draw_states

        return draw_states(self, limit=limit)

    def _verdict_lines(self, state: State) -> list[str]:
        lines = [f"{state.run}, step {state.step:,}: {state.summary}"]
        lines += [f"  {one.verdict}: {one.sentence}" for one in state.evidence[1:]]
        if state.evidence:
            lines.append(f"  held against {state.basis}")
        if not state.unknown:
            lines += [
                f"  {domain.verdict}: {domain.domain} is not judged. {domain.unknown}"
                for domain in state.domains
                if domain.unknown
            ]
        return lines


def state(
    table: CurveTable,
    *,
    run: Names = None,
    references: Names = None,
    seen: float | None = None,
    load: Load | None = None,
) -> States:
    """Says whether runs are healthy at their latest checkpoint, to be watched, or to be acted on.

    Args:
        table: the curves, from `load`.
        run: only these runs; all in the table otherwise.
        references: what to hold them against instead of finished smaller runs of the family or their own past: names
            of runs in the table (`*` stands for anything), files and folders, or published curves such as
            `published:pythia`.
        seen: share of a run, above 0 and below 1: judge as if only that had been seen.
        load: reads the paths among `references`, where they need more than their names, for example
            `lambda paths: curves.load(*paths, tokens_per_step=2e6)`.

    Returns:
        One state for each run; `verdict` is the gravest.

    Raises:
        ProbeError: a run or a reference is not there, or a reference cannot be read.
    """
    from probes.dynamics.state import assess

    names = known(run, table.runs, "--run") or list(table.runs)
    if not names:
        raise ProbeError("The table holds no runs. Load run directories, lm-eval's results or a table of scores.")
    held = held_against(table, references, load)
    whole = held.table if held is not None else table
    known_by = {
        name: whole.until(name, seen * (whole.runs[name].total_tokens or whole.last_tokens(name))) if seen else whole
        for name in names
    }
    found = [assess(known_by[name], name, references=held.names if held is not None else None) for name in names]
    return States(whole, found, seen=known_by, held=held)
