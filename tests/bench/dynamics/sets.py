"""What the sections on Pythia share: the four sets, the six tasks that leave chance, and the sizes that are looked at.

References are chosen by the product's own rule (`family_references`): finished, smaller, of the same set, not decaying.
On Pythia that leaves out 70M and 160M, so sizes here begin at 410M.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from probes.dynamics.published import PYTHIA_TASKS, PYTHIA_TOKENS_PER_STEP, pythia
from probes.dynamics.table import CurveTable, Series

SETS = tuple((deduped, num_fewshot) for deduped in (False, True) for num_fewshot in (0, 5))
_SMALLEST = 2e8


def sets() -> Iterator[tuple[str, CurveTable, list[Series]]]:
    """Name, table (six tasks and LAMBADA's perplexity as the loss) and the six series of each set."""
    for deduped, num_fewshot in SETS:
        table = pythia(deduped=deduped, num_fewshot=num_fewshot)
        tasks = [replace(one, num_fewshot=num_fewshot) for one in PYTHIA_TASKS]
        name = f"{'deduped' if deduped else 'standard'}, {num_fewshot}-shot"
        yield name, table.select(series=[*tasks, perplexity(num_fewshot)]), tasks


def perplexity(num_fewshot: int) -> Series:
    """LAMBADA's perplexity."""
    return Series("lambada_openai", "ppl", num_fewshot)


def sizes(table: CurveTable, *, above: float = _SMALLEST, below: float = float("inf")) -> list[str]:
    """Runs with so many parameters, smallest first."""
    return [run for run in table.by_size(table.runs) if above < (table.runs[run].parameters or 0.0) < below]


def tokens_at(step: int) -> float:
    """Tokens a Pythia model has seen at a step."""
    return float(step * PYTHIA_TOKENS_PER_STEP)


def mean(values: Sequence[float]) -> float:
    """Their mean; every section reports means of absolute errors."""
    return float(sum(values) / len(values))


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers of less than one with four decimals."""

    def cell(value: object) -> str:
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])
