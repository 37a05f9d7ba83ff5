"""Losses and learning rates at checkpoints, made of what was logged step by step before them, so that nothing leaks."""

from __future__ import annotations

import numpy as np

_LOSS_WINDOW = 0.05
"""Share of the tokens so far over which the training loss is averaged."""
_LARGEST_WINDOW_ROWS = 200


def trailing_mean(tokens_R: np.ndarray, value_R: np.ndarray, tokens_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the rows of the last 5% of the tokens before each place, 200 at most, and its standard error."""
    good_R = np.isfinite(value_R)
    tokens_R, value_R = tokens_R[good_R], value_R[good_R]
    end_C = np.searchsorted(tokens_R, tokens_C, side="right")
    begin_C = np.searchsorted(tokens_R, tokens_C * (1 - _LOSS_WINDOW), side="right")
    begin_C = np.maximum(np.minimum(begin_C, end_C - 1), np.maximum(end_C - _LARGEST_WINDOW_ROWS, 0))
    count_C = np.where(end_C > 0, end_C - begin_C, 0)
    centre = value_R.mean() if len(value_R) else 0.0  # sums of small numbers lose less
    sums = np.concatenate([[0.0], np.cumsum(value_R - centre)])
    squares = np.concatenate([[0.0], np.cumsum((value_R - centre) ** 2)])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_C = (sums[end_C] - sums[begin_C]) / count_C
        variance_C = (squares[end_C] - squares[begin_C]) / count_C - mean_C**2
        stderr_C = np.sqrt(np.maximum(variance_C, 0.0) / (count_C - 1))
    return np.where(count_C > 0, mean_C + centre, np.nan), np.where(count_C > 1, stderr_C, np.nan)


def latest_before(tokens_R: np.ndarray, value_R: np.ndarray, tokens_C: np.ndarray) -> np.ndarray:
    """The last finite value at or before each place; nan where there is none."""
    good_R = np.isfinite(value_R)
    values = np.append(np.nan, value_R[good_R])
    return values[np.searchsorted(tokens_R[good_R], tokens_C, side="right")]
