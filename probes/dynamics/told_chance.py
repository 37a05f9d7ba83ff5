"""Scores of guessing that the user says, and a sentence on the tasks of which nobody does.

Apart from `probes.dynamics.guessing`, which knows tasks by their names, and from `probes.dynamics.chance`, which tests
scores against guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pretrain.config.nearest import did_you_mean
from pretrain.errors import ProbeError
from probes.dynamics.guessing import beginnings
from probes.dynamics.metrics import is_score
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, TaskCurve
from probes.dynamics.trust import TrustRule

SAY_CHANCE = "say it in a column chance or choices, or with --chance TASK=0.25"
_SHOWN = 5


def with_chance(table: CurveTable, told: Mapping[str, float]) -> CurveTable:
    """The table with these scores of guessing, which are stronger than what records and names say.

    Args:
        table: the curves.
        told: by task, or by how the names of tasks begin (`blimp`); the longest counts.
    """
    if not told:
        return table

    def of(curve: TaskCurve) -> TaskCurve:
        named = next((told[start] for start in reversed(beginnings(curve.task)) if start in told), None)
        return curve if named is None or not is_score(curve.metric) else replace(curve, chance=named)

    return CurveTable(table.runs.values(), [of(curve) for curve in table], notes=table.notes)


def chance_told(columns: Mapping[str, Any], *, source: str, where: Callable[[int], str]) -> np.ndarray:
    """The score of guessing of each row as the columns `chance` and `choices` tell it; nan where they do not.

    Args:
        columns: of a table of scores, by their names here.
        source: the table, for errors.
        where: what a row is called in errors.

    Raises:
        ProbeError: a score of guessing that is none, or a number of choices that cannot be.
    """
    unknown_R = np.full(len(columns["value"]), np.nan)
    chance_R, choices_R = columns.get("chance", unknown_R), columns.get("choices", unknown_R)
    with np.errstate(invalid="ignore"):
        wrong_R = np.flatnonzero((chance_R < 0) | (chance_R >= 1) | np.isinf(chance_R))
        strange_R = np.flatnonzero((choices_R < 2) | np.isinf(choices_R) | (choices_R % 1 > 0))
    if len(wrong_R):
        row = int(wrong_R[0])
        hint = f" Write {chance_R[row] / 100:g} for {chance_R[row]:g} %." if 1 <= chance_R[row] < 100 else ""
        raise ProbeError(
            f"{source}, {where(row)}: chance={chance_R[row]:g} is no score of guessing, which is from 0 to "
            f"below 1.{hint}"
        )
    if len(strange_R):
        row = int(strange_R[0])
        raise ProbeError(
            f"{source}, {where(row)}: choices={choices_R[row]:g} is no number of choices: 2 or more. Where answers are "
            "written, leave it empty and write 0 into a column chance."
        )
    return np.where(np.isfinite(chance_R), chance_R, 1.0 / choices_R)


def require_tasks(table: CurveTable, told: Mapping[str, float]) -> None:
    """Refuses a score of guessing of a task that the table does not have.

    Raises:
        ProbeError: names the nearest right one.
    """
    tasks = sorted({curve.task for curve in table if is_score(curve.metric)})
    known = {start for task in tasks for start in beginnings(task)}
    for name, chance in told.items():
        if name not in known:
            listed = ", ".join(tasks[:10]) + (", …" if len(tasks) > 10 else "")
            raise ProbeError(
                f"--chance {name}={chance:g}: no task of the table has this name or begins with it."
                f"{did_you_mean(name, tasks)} Tasks with accuracies: {listed or 'none'}."
            )


def unknown_chance(table: CurveTable) -> str | None:
    """A sentence that names the tasks whose score of guessing is not known; None if it is known of all."""
    unknown = [
        curve.task
        for curve in table
        if is_score(curve.metric) and not np.isfinite(curve.chance) and curve.domain != LOSS_DOMAIN
    ]
    tasks = list(dict.fromkeys(unknown))
    if not tasks:
        return None
    names = ", ".join(tasks[:_SHOWN]) + (f" and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else "")
    return (
        f"The score of guessing is not known for {names}: {SAY_CHANCE}. Until then a task counts as above guessing "
        f"only where its score has risen by {TrustRule().unknown_chance_gain:g} times its noise."
    )
