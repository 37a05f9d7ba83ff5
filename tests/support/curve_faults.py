"""Faults put into one run of a made family (`tests.support.curve_family`), for the tests of its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from probes.dynamics.table import CurveTable, TaskCurve
from tests.support.curve_family import LAWS, LOSS, SIZES, TOKENS_PER_STEP, changed, run_of, with_values

RUNS = [run_of(size) for size in SIZES]
RUN, OTHERS = RUNS[2], [*RUNS[:2], *RUNS[3:]]
TASKS = {law.task: law for law in LAWS if law is not LOSS}
NOW = 93_000


def at(table: CurveTable, step: int, *, run: str = RUN) -> CurveTable:
    """The table as it was when the run had reached a step."""
    return table.until(run, step * TOKENS_PER_STEP)


def fault(
    table: CurveTable,
    change: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    tasks: Sequence[str] = tuple(TASKS),
    step: int = NOW,
    last: int = 1,
    run: str = RUN,
) -> CurveTable:
    """The table at a step, the last checkpoints of these tasks of the run as `change(judged_C, late_C)` has them."""

    def with_fault(curve: TaskCurve) -> TaskCurve:
        if curve.run != run or curve.task not in tasks:
            return curve
        late_C = np.arange(len(curve)) >= len(curve) - last
        sign = -1.0 if curve.lower_is_better else 1.0
        return with_values(curve, sign * change(sign * curve.value_C, late_C))

    return changed(at(table, step, run=run), with_fault)


def drop(share: float, *, of: float = 0.25) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Loses a share of what is above `of`."""
    return lambda value_C, late_C: value_C - late_C * share * (value_C - of)
