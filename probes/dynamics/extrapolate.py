"""A curve's future from its own past alone, for runs without references; and the simple ways others must beat.

The mean of four: a power law fitted freely and one held by weak priors, the line through the last four checkpoints in
log tokens and the same with six tenths of its slope. On Pythia each is wrong in another way. All in judged units
(`probes.dynamics.noise.judged_value`).
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

from probes.dynamics.noise import judged_value, noise_of
from probes.dynamics.surface import Band
from probes.dynamics.table import TaskCurve

FEWEST = 4
"""Checkpoints below which nothing is said."""

_LINE_OVER = 4
_DAMPING = 0.6
_TRUST_IN_GAIN = 0.3
"""Standard deviation of what is still to come, as a share of what is predicted of it; a first guess, not tuned."""


def extrapolate(curve: TaskCurve, tokens: float) -> Band:
    """The score at a later position.

    Args:
        curve: at least `FEWEST` checkpoints, none at 0 tokens; the very first ones left out (`surface.relevant`).
        tokens: the position.
    """
    ways = np.array(
        [
            power_law(curve, tokens),
            power_law(curve, tokens, prior=True),
            line(curve, tokens),
            damped_line(curve, tokens),
        ]
    )
    value, noise = float(ways.mean()), noise_of(curve)
    present = float(judged_value(curve)[-3:].mean())
    deviation = float(np.hypot(ways.std(), _TRUST_IN_GAIN * abs(value - present)))
    deviation = float(np.hypot(deviation, noise / np.sqrt(3)))
    return Band(np.array([value]), np.array([deviation]), np.array([[deviation**2 + noise**2]]))


def last_value(curve: TaskCurve) -> float:
    """Nothing changes any more."""
    return float(judged_value(curve)[-1])


def line(curve: TaskCurve, tokens: float, *, damping: float = 1.0) -> float:
    """The line through the last four checkpoints in log tokens, from its value at the last one on."""
    position_C, value_C = np.log(curve.tokens_C[-_LINE_OVER:]), judged_value(curve)[-_LINE_OVER:]
    if len(value_C) < 2:
        return float(value_C[-1])
    slope, offset = np.polyfit(position_C, value_C, 1)
    return float(slope * position_C[-1] + offset + damping * slope * (np.log(tokens) - position_C[-1]))


def damped_line(curve: TaskCurve, tokens: float) -> float:
    """The same line with six tenths of its slope: curves flatten."""
    return line(curve, tokens, damping=_DAMPING)


def power_law(curve: TaskCurve, tokens: float, *, prior: bool = False) -> float:
    """A power law, bound − score = B D^−β + E by soft-L1 least squares; B, β, E ≥ 0.

    Args:
        curve: what has been seen.
        tokens: where.
        prior: hold the parameters by log-normal priors, for short curves.
    """
    bound = 0.0 if curve.lower_is_better else 1.0
    distance_C, tokens_C = bound - judged_value(curve), curve.tokens_C / curve.tokens_C[-1]
    lowest, spread = float(distance_C.min()), max(float(np.ptp(distance_C)), 1e-6)
    centre = np.log([0.3 * spread, 0.3, max(0.7 * abs(lowest), 1e-6)])
    weight = np.array([1.0, 2.0, 2.0]) if prior else np.full(3, 1e-3)

    def residual(parameters: np.ndarray) -> np.ndarray:
        b, beta, floor = np.exp(parameters)
        return np.concatenate([(b * tokens_C**-beta + floor - distance_C) / 0.01, weight * (parameters - centre)])

    starts = [centre + np.array([0.0, np.log(exponent / 0.3), 0.0]) for exponent in (0.1, 0.3, 0.6)]
    bounds = (centre - 12.0, centre + np.array([6.0, np.log(3.0 / 0.3), 3.0]))
    fits = [optimize.least_squares(residual, start, loss="soft_l1", bounds=bounds) for start in starts]
    b, beta, floor = np.exp(min(fits, key=lambda fit: fit.cost).x)
    return float(bound - (b * (tokens / curve.tokens_C[-1]) ** -beta + floor))
