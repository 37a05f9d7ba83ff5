"""The future of a run's curves from their own past alone; and the simple ways that it must beat.

What a score lacks to the best possible one falls as a power of tokens: a line in the logarithms, in which late
checkpoints weigh more. Its exponent is held near those of the run's other tasks, because three noisy scores do not say
one. The best possible is 1 for scores, and three quarters of the lowest loss so far. On Pythia, thinned to a few
checkpoints or whole, on Amber and on the OLMo ladder it errs less than lines and power laws with a free floor. All in
judged units (`probes.dynamics.noise.judged_value`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from probes.dynamics.noise import STDERR_SHARE, judged_stderr, judged_value, noise_of
from probes.dynamics.surface import Band
from probes.dynamics.table import Series, TaskCurve

FEWEST = 2
"""Checkpoints below which nothing is said: one score has no slope."""

FURTHEST = 10.0
"""Times the tokens seen beyond which nothing is said."""

_MEMORY = 0.5
_LONG_MEMORY = 1.0
SHORT_CURVE = 5
"""A checkpoint's weight falls by e over `_MEMORY` in the logarithm of tokens, in curves of fewer than `SHORT_CURVE`
checkpoints over `_LONG_MEMORY`: a slope from two scores is mostly noise. On thinned Pythia 0.7 does as well as 1;
that 1 does better on TinyLlama was known when it was chosen."""

_SCATTER = 0.012
"""Of a score about its power law, at least."""
_EXPONENTS_SPREAD = 0.04
"""Standard deviation between the exponents of one run's tasks."""
_TRUST_IN_GAIN = 0.2
"""Standard deviation of what is still to come, as a share of what is predicted of it. This and the numbers above were
chosen on Pythia's standard sets, on Amber and on the OLMo
ladder's runs at 1 and 2 times Chinchilla's tokens."""

_SHARE_OF_GAIN = 0.85
"""Of the gain that the law predicts for a score, where nothing else is known: scores flatten more than their latest
checkpoints let expect, which references know. Chosen on Pythia's standard sets. Short curves, whose law looks further
back, and losses (the ladder's bits per byte) do not need it."""

_SMALLEST_DISTANCE = 1e-3
_LOSS_FLOOR = 0.75
"""Of the lowest loss so far, which no further training goes below; in nats or bits."""
_LINE_OVER = 4
_DAMPING = 0.6


def extrapolate(curves: Mapping[Series, TaskCurve], tokens: float, *, alone: bool = True) -> dict[Series, Band]:
    """The scores of one run at a later position.

    Args:
        curves: each of at least `FEWEST` checkpoints, none at 0 tokens; the very first ones left out
            (`surface.relevant`).
        tokens: the position.
        alone: whether nothing else is known of the future; then scores gain `_SHARE_OF_GAIN` of what the law says.
    """
    lines = {one: _line_of(curve) for one, curve in curves.items()}
    found = {}
    for one, curve in curves.items():
        alike = [lines[other] for other in curves if _kind(curves[other]) == _kind(curve)]
        flattens = alone and len(curve) >= SHORT_CURVE and not curve.lower_is_better
        share = _SHARE_OF_GAIN if flattens else 1.0
        found[one] = _continued(curve, lines[one].bent_to(alike), tokens, share_of_gain=share)
    return found


@dataclass(frozen=True, slots=True)
class _Line:
    """log(best possible − score) = height − exponent · (log tokens − centre).

    Attributes:
        exponent: by weighted least squares.
        variance: of the exponent.
        height: at the centre.
        centre: weighted mean of log tokens.
    """

    exponent: float
    variance: float
    height: float
    centre: float

    def distance(self, tokens: float) -> float:
        """What a score lacks to the best possible one."""
        return float(np.exp(self.height - self.exponent * (np.log(tokens) - self.centre)))

    def bent_to(self, others: list[_Line]) -> _Line:
        """With the exponent that is most probable given those of the run's other tasks, this one's among them."""
        exponents = np.array([line.exponent for line in others])
        weights = 1.0 / (np.array([line.variance for line in others]) + _EXPONENTS_SPREAD**2)
        typical, precision = float(weights @ exponents / weights.sum()), 1.0 / self.variance
        if len(others) > 1:
            held = precision + 1.0 / _EXPONENTS_SPREAD**2
            exponent = (precision * self.exponent + typical / _EXPONENTS_SPREAD**2) / held
            return _Line(exponent, 1.0 / held, self.height, self.centre)
        return self


def _kind(curve: TaskCurve) -> str:
    """Curves of one kind may have similar exponents: all scores, and each kind of loss."""
    return curve.metric if curve.lower_is_better else ""


def _best_possible(curve: TaskCurve) -> float:
    return _LOSS_FLOOR * float(judged_value(curve).max()) if curve.lower_is_better else 1.0


def _distance(curve: TaskCurve) -> np.ndarray:
    return np.maximum(_best_possible(curve) - judged_value(curve), _SMALLEST_DISTANCE)


def _line_of(curve: TaskCurve) -> _Line:
    position_C, distance_C = np.log(curve.tokens_C), _distance(curve)
    memory = _LONG_MEMORY if len(curve) < SHORT_CURVE else _MEMORY
    # Scores, not their logarithms, scatter evenly.
    weight_C = np.exp((position_C - position_C[-1]) / memory) * distance_C**2
    centre, height = (float(weight_C @ x_C / weight_C.sum()) for x_C in (position_C, np.log(distance_C)))
    lever_C = weight_C * (position_C - centre)
    lever_C /= lever_C @ (position_C - centre)
    of_items_C = judged_stderr(curve)[np.isfinite(curve.stderr_C)]
    scatter = max(_SCATTER, STDERR_SHARE * float(of_items_C.mean()) if len(of_items_C) else 0.0)
    return _Line(
        -float(lever_C @ np.log(distance_C)), float(np.sum((lever_C * scatter / distance_C) ** 2)), height, centre
    )


def _continued(curve: TaskCurve, line: _Line, tokens: float, *, share_of_gain: float) -> Band:
    reach, distance = float(np.log(tokens)), line.distance(tokens)
    now = _best_possible(curve) - line.distance(float(curve.tokens_C[-1]))
    value = now + share_of_gain * (_best_possible(curve) - distance - now)
    last_C = judged_value(curve)[-3:]
    noise = noise_of(curve)
    noise = noise if np.isfinite(noise) else _SCATTER
    slope = distance * np.sqrt(line.variance) * (reach - line.centre)
    gain = _TRUST_IN_GAIN * abs(value - float(last_C.mean()))
    deviation = float(np.linalg.norm([slope, gain, noise / np.sqrt(len(last_C))]))
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


def power_law(curve: TaskCurve, tokens: float) -> float:
    """A power law, bound − score = B D^−β + E by soft-L1 least squares; B, β, E ≥ 0."""
    bound = 0.0 if curve.lower_is_better else 1.0
    distance_C, tokens_C = bound - judged_value(curve), curve.tokens_C / curve.tokens_C[-1]
    lowest, spread = float(distance_C.min()), max(float(np.ptp(distance_C)), 1e-6)
    centre = np.log([0.3 * spread, 0.3, max(0.7 * abs(lowest), 1e-6)])

    def residual(parameters: np.ndarray) -> np.ndarray:
        b, beta, floor = np.exp(parameters)
        return np.concatenate([(b * tokens_C**-beta + floor - distance_C) / 0.01, 1e-3 * (parameters - centre)])

    starts = [centre + np.array([0.0, np.log(exponent / 0.3), 0.0]) for exponent in (0.1, 0.3, 0.6)]
    bounds = (centre - 12.0, centre + np.array([6.0, np.log(3.0 / 0.3), 3.0]))
    fits = [optimize.least_squares(residual, start, loss="soft_l1", bounds=bounds) for start in starts]
    b, beta, floor = np.exp(min(fits, key=lambda fit: fit.cost).x)
    return float(bound - (b * (tokens / curve.tokens_C[-1]) ** -beta + floor))
