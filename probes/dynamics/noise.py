"""How far a score swings from one checkpoint to the next, and a curve smoothed with an error band.

The items of a task are the same at every checkpoint, so that neighbouring scores differ by less than the standard error
over items says; that one answers whether a score is above chance, this one whether a curve moves. No verdicts here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from probes.dynamics.metrics import is_perplexity
from probes.dynamics.table import TaskCurve

STDERR_SHARE = 0.35
"""Least checkpoint noise, in binomial standard errors: on Pythia 410M to 12B (seven tasks, four sets) its median is
0.50 of them, its lower quartile 0.37, and a much lower figure from ten checkpoints is luck."""

_LEAST_PIECES = 5
_WIDEST_SPAN = 1.0
"""In natural logarithms of tokens, from the checkpoint before to the one after."""
HALF_NORMAL_MEDIAN = 0.6744897501960817


@dataclass(frozen=True, slots=True)
class SmoothCurve:
    """A curve without its checkpoint noise.

    Attributes:
        tokens_C: float64, as in the curve it is of.
        value_C: the local line's value at each checkpoint, in the curve's own unit.
        low_C: lower end of the band.
        high_C: upper end of the band.
        noise: standard deviation of one checkpoint's score about it.
        neighbours: checkpoints a local line was drawn through, chosen by cross-validation.
    """

    tokens_C: np.ndarray
    value_C: np.ndarray
    low_C: np.ndarray
    high_C: np.ndarray
    noise: float
    neighbours: int


def log_tokens(tokens_C: np.ndarray) -> np.ndarray:
    """Natural logarithms; a checkpoint before training counts as half the first one after it."""
    tokens_C = np.asarray(tokens_C, np.float64)
    positive = tokens_C[tokens_C > 0]
    return np.log(np.maximum(tokens_C, 0.5 * positive.min() if len(positive) else 1.0))


def judged_value(curve: TaskCurve) -> np.ndarray:
    """The scores with the sign turned so that more is better; perplexities as the nats they are the exponential of."""
    value_C = np.log(np.maximum(curve.value_C, 1e-300)) if is_perplexity(curve.metric) else curve.value_C
    return -value_C if curve.lower_is_better else np.asarray(value_C)


def unjudged_value(curve: TaskCurve, judged_Q: np.ndarray) -> np.ndarray:
    """Back from `judged_value`'s unit to the curve's metric."""
    value_Q = -judged_Q if curve.lower_is_better else judged_Q
    return np.exp(value_Q) if is_perplexity(curve.metric) else value_Q


def judged_stderr(curve: TaskCurve) -> np.ndarray:
    """The standard errors over items that belong to `judged_value`."""
    if is_perplexity(curve.metric):
        return curve.stderr_C / np.maximum(curve.value_C, 1e-300)
    return curve.stderr_C


def noise_of(curve: TaskCurve) -> float:
    """Checkpoint noise of a curve, in the unit of `judged_value`; nan below three checkpoints."""
    return float(checkpoint_noise(curve.tokens_C, judged_value(curve), judged_stderr(curve)))


def checkpoint_noise(tokens_C: np.ndarray, value_XC: np.ndarray, stderr_XC: np.ndarray | None = None) -> np.ndarray:
    """Standard deviation of one checkpoint's score about its curve.

    Each score is compared with the line in log tokens between its neighbours (second differences; Gasser, Sroka and
    Jennen-Steinmetz 1986, for unequal distances), and the median of the differences is taken, so that a jump does not
    count as noise. Where the checkpoint after has more than e times the tokens of the one before, as early in training,
    curvature would be taken for noise: such differences are left out as long as five others remain.

    Args:
        tokens_C: increasing.
        value_XC: any number of curves, or of axes of curves, with these checkpoints.
        stderr_XC: standard errors over items; nan where unknown.

    Returns:
        One value a curve, float64, above 0; nan below three checkpoints.
    """
    value_XC = np.asarray(value_XC, np.float64)
    if value_XC.shape[-1] < 3:
        return np.full(value_XC.shape[:-1], np.nan)
    position_C = log_tokens(tokens_C)
    span_T = position_C[2:] - position_C[:-2]
    difference_XT = noise_pieces(tokens_C, value_XC)
    # Of equal spans the latest: it is the noise now that a verdict now wants.
    by_span_T = len(span_T) - 1 - np.argsort(span_T[::-1], kind="stable")
    used_T = by_span_T[: max(_LEAST_PIECES, int(np.sum(span_T <= _WIDEST_SPAN)))]
    noise_X = np.median(np.abs(difference_XT[..., used_T]), axis=-1) / HALF_NORMAL_MEDIAN
    if stderr_XC is not None:
        error_X = _mean_of_known(np.asarray(stderr_XC, np.float64)[..., used_T + 1])
        noise_X = np.maximum(noise_X, STDERR_SHARE * np.nan_to_num(error_X))
    return np.maximum(noise_X, _least_noise(value_XC))


def is_noise_measured(curve: TaskCurve, noise: float) -> bool:
    """Whether a curve's noise is more than the number that stands for none: its scores do not lie on a smooth line."""
    return not noise <= _least_noise(judged_value(curve))


def _least_noise(value_XC: np.ndarray) -> np.ndarray:
    """What stands for no noise, so that it can be divided by."""
    return np.asarray(1e-9 * np.maximum(1.0, np.abs(value_XC).max(axis=-1)))


def noise_pieces(tokens_C: np.ndarray, value_XC: np.ndarray) -> np.ndarray:
    """How far each score is from the line between its neighbours, scaled to one score's noise; the ends have none."""
    position_C = log_tokens(tokens_C)
    weight_T = (position_C[2:] - position_C[1:-1]) / (position_C[2:] - position_C[:-2])
    difference_XT = value_XC[..., 1:-1] - weight_T * value_XC[..., :-2] - (1.0 - weight_T) * value_XC[..., 2:]
    pieces_XT: np.ndarray = difference_XT / np.sqrt(1.0 + weight_T**2 + (1.0 - weight_T) ** 2)
    return pieces_XT


def smooth(curve: TaskCurve, *, level: float = 0.8) -> SmoothCurve:
    """Local lines in log tokens through the nearest checkpoints, their number chosen by leave-one-out errors.

    Cleveland's loess (1979) with tricube weights; nearest neighbours rather than a fixed width, since checkpoints lie
    an octave apart early and close together late. The band is for the curve, not for a score, and knows checkpoint
    noise, or what the fit leaves over if that is more; not the smoothing's bias.

    Args:
        curve: three checkpoints or more for a band; below that the curve itself with a band of nan.
        level: share of the time that the band is to hold the curve at a checkpoint.
    """
    count = len(curve)
    if count < 3:
        nan_C = np.full(count, np.nan)
        return SmoothCurve(curve.tokens_C, curve.value_C, nan_C, nan_C, float("nan"), count)
    position_C = log_tokens(curve.tokens_C)
    noise = float(checkpoint_noise(curve.tokens_C, curve.value_C, curve.stderr_C))
    best = (np.inf, np.eye(count), count)
    for neighbours in _widths(count):
        hat_CC = _local_lines(position_C, neighbours)
        left_C = np.maximum(1.0 - np.diag(hat_CC), 1e-6)
        error = float(np.mean(((curve.value_C - hat_CC @ curve.value_C) / left_C) ** 2))
        if error < best[0]:
            best = (error, hat_CC, neighbours)
    _, hat_CC, neighbours = best
    value_C = hat_CC @ curve.value_C
    freedom = max(count - 2.0 * np.trace(hat_CC) + float(np.sum(hat_CC**2)), 1.0)
    noise = max(noise, float(np.sqrt(np.sum((curve.value_C - value_C) ** 2) / freedom)))
    half_C = special.ndtri(0.5 + level / 2.0) * noise * np.sqrt(np.sum(hat_CC**2, axis=1))
    return SmoothCurve(curve.tokens_C, value_C, value_C - half_C, value_C + half_C, noise, neighbours)


def _widths(count: int) -> list[int]:
    """Numbers of neighbours to try: five, then half as many again, up to all."""
    widths = [min(5, count)]
    while widths[-1] < count:
        widths.append(min(count, int(np.ceil(widths[-1] * 1.5))))
    return widths


def _local_lines(position_C: np.ndarray, neighbours: int) -> np.ndarray:
    """The matrix that makes smoothed scores of scores; rows sum to 1 and reproduce every line."""
    distance_CC = np.abs(position_C[:, None] - position_C[None, :])
    reach_C = np.sort(distance_CC, axis=1)[:, neighbours - 1] * (1.0 + 1e-6)
    # The farthest of the neighbours would get no weight at all.
    share_CC = distance_CC / np.maximum(reach_C[:, None] * 1.1, 1e-12)
    weight_CC = np.clip(1.0 - share_CC**3, 0.0, None) ** 3
    offset_CC = position_C[None, :] - position_C[:, None]
    zeroth_C, first_C, second_C = (np.sum(weight_CC * offset_CC**power, axis=1)[:, None] for power in range(3))
    determinant_C = np.maximum(zeroth_C * second_C - first_C**2, 1e-12)
    return weight_CC * (second_C - offset_CC * first_C) / determinant_C


def _mean_of_known(value_XT: np.ndarray) -> np.ndarray:
    known_XT = np.isfinite(value_XT)
    count_X = known_XT.sum(axis=-1)
    total_X = np.where(known_XT, value_XT, 0.0).sum(axis=-1)
    return np.where(count_X > 0, total_X / np.maximum(count_X, 1), np.nan)
