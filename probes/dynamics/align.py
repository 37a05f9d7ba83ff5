"""Puts curves of different runs on one axis: tokens, tokens per parameter, training FLOPs, or loss.

Scores are interpolated linearly in the logarithm of the axis, never extrapolated. What is then compared is for
`probes.dynamics.similarity`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.metrics import is_loss_metric, is_text_loss
from probes.dynamics.noise import judged_value, log_tokens
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve

AXES = ("tokens", "tokens_per_parameter", "flops", "loss")


def positions(table: CurveTable, curve: TaskCurve, *, axis: str = "tokens", loss: Series | None = None) -> np.ndarray:
    """Where a curve's checkpoints lie on an axis, so that more training is more.

    Args:
        table: has the run's parameters, and its loss if that is the axis.
        curve: of the table.
        axis: one of `AXES`.
        loss: what the axis `loss` is made of; what `loss_series` finds unless given.

    Returns:
        Natural logarithms of tokens, tokens per parameter or FLOPs, or minus the loss in its own unit (perplexities as
        logarithms), made monotone by its running minimum. nan where the run lacks what the axis needs.

    Raises:
        ProbeError: no such axis, or no loss in the table.
    """
    if axis not in AXES:
        raise ProbeError(f"Curves cannot be aligned by {axis!r}. Choose one of {', '.join(AXES)}.")
    if axis == "loss":
        return _progress_by_loss(table, curve, loss or loss_series(table))
    facts = table.runs[curve.run]
    if axis == "tokens":
        return log_tokens(curve.tokens_C)
    if axis == "tokens_per_parameter":
        return log_tokens(curve.tokens_C) - np.log(facts.parameters or np.nan)
    return log_tokens(curve.tokens_C) + np.log(float(facts.flops(np.ones(1))[0]))


def loss_series(table: CurveTable) -> Series:
    """The language-modelling loss that most runs of a table have; a validation loss rather than the training loss.

    Raises:
        ProbeError: there is none.
    """
    runs_with: dict[Series, int] = {}
    for curve in table:
        if is_loss_metric(curve.metric) and (curve.domain == LOSS_DOMAIN or is_text_loss(curve.metric)):
            runs_with[curve.series] = runs_with.get(curve.series, 0) + 1
    if not runs_with:
        raise ProbeError(
            "No run has a loss to align by: a curve of the metric loss or ce_loss. Add one to the table, name another "
            "series, such as lambada_openai:ppl, or align by tokens, tokens_per_parameter or flops."
        )
    return max(runs_with, key=lambda series: (runs_with[series], "train" not in series.task))


def find_series(table: CurveTable, text: str) -> Series:
    """The series that `task:metric` or `task` names.

    Raises:
        ProbeError: the table has none, or several.
    """
    task, _, metric = text.partition(":")
    found = [one for one in table.series() if one.task == task and metric in ("", one.metric)]
    if len(found) == 1:
        return found[0]
    known = sorted({f"{one.task}:{one.metric}" for one in (found or table.series())})
    several = "several series" if found else "no series"
    raise ProbeError(f"{text!r} names {several}. Known: {', '.join(known[:12])}{' …' if len(known) > 12 else ''}.")


def common_points(positions: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where several curves can be compared: the checkpoints of the one that has fewest where all are known.

    Args:
        positions: of each curve's C checkpoints, as `positions` gives them; nan, and what is not above all before it,
            is left out.

    Returns:
        (position_P, matrices): a matrix P × C for each curve, which makes its scores there of its scores. No points
        where the curves do not overlap.
    """
    kept = [np.flatnonzero(_rising(position)) for position in positions]
    known = [position[rows] for position, rows in zip(positions, kept, strict=True)]
    points_P = np.zeros(0)
    if all(len(one) for one in known):
        low = max(float(one[0]) for one in known) - 1e-9
        high = min(float(one[-1]) for one in known) + 1e-9
        points_P = min((one[(one >= low) & (one <= high)] for one in known), key=len)
    matrices = []
    for one, rows, position in zip(known, kept, positions, strict=True):
        matrix = np.zeros((len(points_P), len(position)))
        if len(points_P):
            matrix[:, rows] = interpolation(one, points_P)
        matrices.append(matrix)
    return points_P, matrices


def interpolation(known_C: np.ndarray, points_P: np.ndarray) -> np.ndarray:
    """The P × C matrix of linear interpolation; points outside count as the nearest end."""
    if len(known_C) == 1:
        return np.ones((len(points_P), 1))
    points_P = np.clip(points_P, known_C[0], known_C[-1])
    right_P = np.clip(np.searchsorted(known_C, points_P, side="left"), 1, len(known_C) - 1)
    share_P = (points_P - known_C[right_P - 1]) / (known_C[right_P] - known_C[right_P - 1])
    matrix_PC = np.zeros((len(points_P), len(known_C)))
    rows = np.arange(len(points_P))
    matrix_PC[rows, right_P - 1] = 1.0 - share_P
    matrix_PC[rows, right_P] += share_P
    return matrix_PC


def _progress_by_loss(table: CurveTable, curve: TaskCurve, loss: Series) -> np.ndarray:
    """Minus the loss at the curve's checkpoints; nan outside what was measured."""
    measured = table.get(curve.run, loss)
    if measured is None:
        return np.full(len(curve), np.nan)
    # More is better: of the loss, minus; of an accuracy, itself.
    progress_C = np.maximum.accumulate(judged_value(measured))
    tokens_C, wanted_C = log_tokens(measured.tokens_C), log_tokens(curve.tokens_C)
    inside_C = (wanted_C >= tokens_C[0] - 1e-9) & (wanted_C <= tokens_C[-1] + 1e-9)
    return np.where(inside_C, np.interp(wanted_C, tokens_C, progress_C), np.nan)


def _rising(position_C: np.ndarray) -> np.ndarray:
    """Which positions are known and above all before them: a plateau of the loss is one point."""
    known_C = np.isfinite(position_C)
    running_C = np.maximum.accumulate(np.where(known_C, position_C, -np.inf))
    return known_C & np.append(True, running_C[1:] > running_C[:-1])
