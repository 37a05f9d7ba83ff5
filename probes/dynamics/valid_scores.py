"""Which scores of a table are impossible, in percent, missing or given twice: converted with a note, or refused by row.

Shares are between 0 and 1 everywhere in `probes.dynamics`. A table is in percent where a run has accuracies above 1 at
all its checkpoints; where they begin to be above 1 on the way, the unit changed, and nobody can tell what was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.columns import listed
from probes.dynamics.metrics import is_lower_better, is_score
from probes.dynamics.table import CurveTable

_LEAST_JUMP = 20.0
"""Factor between neighbouring values of a curve that only a change of unit explains; shares to percent are 100."""
_LEAST_SHARE = 0.1
"""A curve whose largest value is from here to 1, in a table in percent, may as well be in shares."""
_LARGEST_STDERR_OF_SHARES = 0.06
"""In percent a standard error this small would take 700,000 items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """R rows of a table; arrays are changed in place by the functions here.

    Attributes:
        source: names the table in messages.
        where: names a row in messages.
        run_R: the run of each row.
        unit_R: rows of one name here are in one unit: of a table the run, since whoever writes a table writes all of it
            alike; of lm-eval's results the curve, since a task's definition says its unit.
        name_R: task and metric of each row, for messages; the same for rows of one curve.
        metric_R: the metric of each row.
        position: the name of the axis, `tokens` or `step`, with each row's place on it.
        value_R: scores; nan where missing.
        stderr_R: standard errors; nan where missing.
        percent_R: which values are known to be in percent: written with that sign, or by the task's definition.
    """

    source: str
    where: Callable[[int], str]
    run_R: Sequence[str]
    unit_R: Sequence[str]
    name_R: Sequence[str]
    metric_R: Sequence[str]
    position: tuple[str, np.ndarray]
    value_R: np.ndarray
    stderr_R: np.ndarray
    percent_R: np.ndarray

    def named(self, row: int, *, what: str = "value") -> str:
        """A row with its score, for a message."""
        number = {"value": self.value_R, "stderr": self.stderr_R}[what][row]
        return f"{self.source}, {self.where(int(row))}: {what}={number:.6g} of {self.name_R[row]} of {self.run_R[row]}"


def checked(scores: Scores) -> list[str]:
    """Refuses what is impossible and turns percent into shares. Returns what is to be said of it.

    Raises:
        ProbeError: a value or standard error is infinite or negative, an accuracy is above 100 %, the unit changes on
            the way, or no score is left.
    """
    missing_R = np.flatnonzero(np.isnan(scores.value_R))
    missing, total = len(missing_R), len(scores.value_R)
    if missing == total:
        raise ProbeError(f"{scores.source} has no scores: in all {total} rows the value is missing.")
    notes = []
    if missing:
        first = f"{scores.name_R[missing_R[0]]} of {scores.run_R[missing_R[0]]}, {scores.where(int(missing_R[0]))}"
        notes = [f"{scores.source}: {missing} of {total} rows have no value and are left out (the first is {first})."]
    share_R = np.array([is_score(metric) for metric in scores.metric_R], bool)
    _refuse_impossible(scores, share_R)
    notes += _shares_of_percent(scores, share_R)
    above = np.flatnonzero(share_R & (scores.value_R > 1.0))
    if len(above):
        raise ProbeError(
            f"{scores.named(above[0])} is above 1. Write shares of right answers from 0 to 1, or all in percent."
        )
    return notes


def refuse_conflicts(scores: Scores, keys: Sequence[np.ndarray]) -> list[str]:
    """Refuses two values for one place of one curve; equal ones count once, which is said.

    Args:
        scores: after `checked`.
        keys: arrays of R; rows that agree in all of them and in their position are of one place of one curve.

    Raises:
        ProbeError: two rows differ; names both.
    """
    at_R = scores.position[1]
    kept_R = np.flatnonzero(np.isfinite(scores.value_R) & np.isfinite(at_R))
    order_R = kept_R[np.lexsort((kept_R, at_R[kept_R], *(key[kept_R] for key in keys)))]
    same_R = np.ones(max(len(order_R) - 1, 0), bool)
    for column in (at_R, *keys):
        same_R &= column[order_R[1:]] == column[order_R[:-1]]
    first_R, second_R = order_R[:-1][same_R], order_R[1:][same_R]
    different = np.flatnonzero(scores.value_R[first_R] != scores.value_R[second_R])
    if len(different):
        one, other = first_R[different[0]], second_R[different[0]]
        raise ProbeError(
            f"{scores.named(one)}, but {scores.where(int(other))} says {scores.value_R[other]:.6g} at the same "
            f"{scores.position[0]} ({at_R[one]:.6g}). Keep one of the two rows, or give the runs names of their own."
        )
    return [f"{scores.source}: {len(first_R)} row(s) repeat others and count once."] if len(first_R) else []


def refuse_bad_positions(column_R: np.ndarray, *, name: str, source: str, where: Callable[[int], str]) -> None:
    """Refuses negative and infinite steps and tokens; -1 stands for a step that is not known.

    Raises:
        ProbeError: names the first such row.
    """
    unknown_R = (column_R == -1.0) if name == "step" else np.zeros(len(column_R), bool)
    bad = np.flatnonzero((np.isinf(column_R) | (column_R < 0)) & ~unknown_R)
    if len(bad):
        row = int(bad[0])
        what = "negative" if column_R[row] < 0 else "infinite"
        raise ProbeError(
            f"{source}, {where(row)}: {name}={column_R[row]:.6g} is {what}. Steps and tokens count from 0."
        )


def refuse_impossible_shares(table: CurveTable) -> CurveTable:
    """The table, if every accuracy in it lies from 0 to 1, whatever it was read from.

    Raises:
        ProbeError: names the first curve with another.
    """
    for curve in table:
        if is_score(curve.metric):
            outside = np.flatnonzero((curve.value_C < 0.0) | (curve.value_C > 1.0))
            if len(outside):
                at = outside[0]
                raise ProbeError(
                    f"{curve.series} of {curve.run} is {curve.value_C[at]:.6g} at step {curve.step_C[at]:,}; a "
                    "share of right answers lies from 0 to 1. Correct the record, or give scores in percent as a table."
                )
    return table


def _refuse_impossible(scores: Scores, share_R: np.ndarray) -> None:
    for what, column_R in (("value", scores.value_R), ("stderr", scores.stderr_R)):
        infinite = np.flatnonzero(np.isinf(column_R))
        if len(infinite):
            raise ProbeError(
                f"{scores.named(infinite[0], what=what)} is infinite. Leave it empty (null in JSON) where nothing "
                "is known."
            )
    falls_R = np.array([is_lower_better(metric) for metric in scores.metric_R], bool)
    for what, bad_R, kind in (
        ("value", (scores.value_R < 0.0) & share_R, "a share of right answers lies from 0 to 1"),
        ("value", (scores.value_R < 0.0) & falls_R, "losses and perplexities are not below 0"),
        ("stderr", scores.stderr_R < 0.0, "a standard error is not below 0"),
    ):
        bad = np.flatnonzero(bad_R)
        if len(bad):
            raise ProbeError(f"{scores.named(bad[0], what=what)} is negative; {kind}. Correct the row or leave it out.")


def _shares_of_percent(scores: Scores, share_R: np.ndarray) -> list[str]:
    """Converts what is in percent, values and standard errors."""
    units = np.array(scores.unit_R)
    scores.value_R[scores.percent_R & ~share_R] /= 100.0
    scored_R = share_R & np.isfinite(scores.value_R)
    signed_R = scored_R & scores.percent_R
    converted: list[str] = []
    for unit in dict.fromkeys(units[scored_R & ((scores.value_R > 1.0) | signed_R)].tolist()):
        of_unit_R = scored_R & (units == unit)
        if not scores.percent_R[of_unit_R].all():
            _refuse_change_of_unit(scores, of_unit_R)
        largest = int(np.flatnonzero(of_unit_R)[np.argmax(scores.value_R[of_unit_R])])
        if scores.value_R[largest] > 100.0:
            raise ProbeError(
                f"{scores.named(largest)} is above 100 %. Write shares of right answers from 0 to 1, or percent."
            )
        _convert(scores, of_unit_R)
        converted.append(unit)
    if not converted:
        return []
    return [
        f"{scores.source}: accuracies of {listed(converted)} are in percent; values and standard errors are "
        "read as shares."
    ]


def _convert(scores: Scores, of_unit_R: np.ndarray) -> None:
    scores.value_R[of_unit_R] /= 100.0
    errors = scores.stderr_R[of_unit_R]
    known = errors[np.isfinite(errors)]
    if len(known) and known.max() > _LARGEST_STDERR_OF_SHARES:
        scores.stderr_R[of_unit_R] = errors / 100.0


def _refuse_change_of_unit(scores: Scores, of_unit_R: np.ndarray) -> None:
    """Refuses a run whose accuracies are shares at some checkpoints or of some tasks, and percent at others."""
    name, at_R = scores.position
    rows = np.flatnonzero(of_unit_R)
    percent_at = np.unique(at_R[rows[scores.value_R[rows] > 1.0]])
    is_percent = np.isin(at_R[rows], percent_at)
    curves = np.array(scores.name_R)[rows]
    for curve in dict.fromkeys(curves.tolist()):
        own = rows[curves == curve]
        own = own[np.argsort(at_R[own], kind="stable")]
        value, large = scores.value_R[own], scores.value_R[own] > 1.0
        for place in np.flatnonzero(large[1:] != large[:-1]) + 1:
            before, after = value[place - 1], value[place]
            if (
                min(before, after) > 0.0
                and max(before, after) / min(before, after) > _LEAST_JUMP
                and not is_percent.all()
            ):
                changed = int(own[place])
                raise ProbeError(
                    f"{scores.named(changed)} follows {before:.6g} at the checkpoint before "
                    f"({scores.where(int(own[place - 1]))}): from {name} {at_R[changed]:.6g} on the unit is "
                    f"{'percent' if large[place] else 'shares'}. Write all accuracies as shares from 0 to 1, or all in "
                    "percent."
                )
    for curve in dict.fromkeys(curves.tolist()):
        own = rows[curves == curve]
        largest = int(own[np.argmax(scores.value_R[own])])
        if _LEAST_SHARE <= scores.value_R[largest] <= 1.0:
            other = int(rows[np.argmax(scores.value_R[rows])])
            raise ProbeError(
                f"{scores.named(largest)} is a share, but {scores.name_R[other]} is {scores.value_R[other]:.6g} "
                f"({scores.where(other)}), in percent. Write all accuracies as shares from 0 to 1, or all in percent."
            )
