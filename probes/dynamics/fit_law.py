"""Fits a law to points, predicts from it, and refuses to predict from a fit that means nothing.

Starts come from a grid of exponents, at each of which the amplitudes are a non-negative least-squares problem; the
best few are finished by L-BFGS-B with analytic gradients. On the OLMo ladder's nine tasks a tenth to a third of random
starts end with the 7B more than 1% off, and from the ladder's own start scipy's usual tolerance ends 2% to 21% off.
Intervals are made in `probes.dynamics.resample`; what the points are is for the callers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from pretrain.errors import ProbeError
from probes.dynamics.law_points import Points
from probes.dynamics.laws import HUBER_DELTA, SMALLEST, Design, Law, Target
from probes.dynamics.refusal import why_degenerate, why_off_line, why_too_few

DEFAULT_LEVEL = 0.8
_EXPONENT_GRID = (0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
_NORMAL_MEDIAN = 0.6744897501960817
"""Of the distance from 0, in standard deviations."""
_NUM_STARTS = 6
_NUM_SCREENED = 20
_ROUGH, _TIGHT = 1e-9, 1e-15
"""Tolerances of the objective, itself about 1e-4: ended at 1e-12, predictions of the ladder's 7B are still 2% off."""


class FitRefused(ProbeError):
    """A prediction was asked of a fit that cannot carry it.

    Attributes:
        reason: why, as `LawFit.refused` or `LawFit.why_not` has it.
    """

    def __init__(self, reason: str, *, of: str) -> None:
        self.reason = reason
        super().__init__(f"{of} predicts nothing there: {reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A predicted score or loss.

    Attributes:
        value: of the fit to all points.
        low: lower end of the interval; nan without resampling.
        high: upper end.
        level: share of outcomes the interval is to hold.
    """

    value: float
    low: float
    high: float
    level: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LawFit:
    """A fitted law.

    Attributes:
        law: the form.
        target: what of the scores it describes.
        points: what it was fitted to, without points the target has no value for.
        value_K: parameters, as `law.parameters` names them.
        objective: what was minimised.
        residual_R: log residuals for `huber`, plain ones for `squares`: points minus fit, in units of the target.
        refused: why nothing may be predicted from it; None for a good fit.
        draw_BK: parameters of B resampled fits; empty before `probes.dynamics.resample`.
        widening: times by which predictions of the resampled fits are moved away from the fit's own.
        law_error: standard deviation, in units of `residual_R`, of what the form itself is wrong by elsewhere.
        robust: whether a new point's noise is normal with the robust spread of the residuals, instead of one of them:
            single bad runs do not widen intervals then.
    """

    law: Law
    target: Target
    points: Points
    value_K: np.ndarray
    objective: float
    residual_R: np.ndarray
    refused: str | None
    draw_BK: np.ndarray
    widening: float = 1.0
    law_error: float = 0.0
    robust: bool = False

    def parameter(self, name: str) -> float:
        """One parameter."""
        return float(self.value_K[self.law.parameters.index(name)])

    def parameter_interval(self, name: str, *, level: float = DEFAULT_LEVEL) -> tuple[float, float]:
        """Quantiles of a parameter over the resampled fits; nan without any."""
        return quantiles(self.draw_BK[:, self.law.parameters.index(name)], level)

    def why_not(self, at: Mapping[str, float]) -> str | None:
        """Why nothing may be predicted there: the fit is refused, or the place is too far away; None if it may."""
        if self.refused:
            return self.refused
        for name, ratio in self.law.max_ratio.items():
            known_R, wanted = self.points.feature_R[name], at[name]
            least, most = float(known_R.min()), float(known_R.max())
            if not least / ratio <= wanted <= most * ratio * (1 + 1e-9):
                return (
                    f"{name.replace('_', ' ')} {wanted:.3g} is more than {ratio:g} times outside of the fitted range, "
                    f"{least:.3g} to {most:.3g}. Fit runs nearer to it."
                )
        if reason := why_off_line(self.law, self.points, at):
            return reason
        if self.law.value_at(self.value_K, at) <= 0:
            return "the law has fallen below 0 there: it is used beyond where it holds."
        return None

    def predict(self, at: Mapping[str, float], *, level: float = DEFAULT_LEVEL) -> Prediction:
        """The score or loss at one place, with an interval if the fit has been resampled.

        Args:
            at: a number for each of the law's features.
            level: share of outcomes that the interval is to hold.

        Raises:
            FitRefused: the fit is degenerate, or the place is too far from the points.
        """
        if reason := self.why_not(at):
            raise FitRefused(reason, of=f"The law {self.law.name}")
        value = float(self.target.back(np.array([self.law.value_at(self.value_K, at)]))[0])
        low, high = quantiles(self.draws_at(at), level)
        return Prediction(value=value, low=low, high=high, level=level)

    def draws_at(self, at: Mapping[str, float], *, noise: bool = True, seed: int = 0) -> np.ndarray:
        """What the B resampled fits say there, apart from the fit to all points by `widening` times as much.

        Args:
            at: a number for each of the law's features.
            noise: adds a residual, since a new point has one.
            seed: of the residuals.

        Returns:
            Scores or losses, B; empty before `probes.dynamics.resample`. Also of a refused fit.
        """
        design = self.law.design({name: np.array([number]) for name, number in at.items()})
        target_B = np.array([design.evaluate(value_K)[0][0] for value_K in self.draw_BK]).reshape(-1)
        centre = self.law.value_at(self.value_K, at)
        away_B = self.law.residual(target_B, np.full(len(target_B), centre))
        generator = np.random.default_rng(seed)
        if noise and len(away_B):
            free_R = self.free_residual_R()
            if self.robust:
                away_B = away_B + robust_spread(free_R) * generator.standard_normal(len(away_B))
            else:
                away_B = away_B + generator.choice(free_R, len(away_B))
        away_B = self.widening * away_B + self.law_error * generator.standard_normal(len(away_B))
        return self.target.back(self.law.with_residual(np.full(len(away_B), centre), away_B))

    def free_residual_R(self) -> np.ndarray:
        """Residuals as large as those of new points: a fit of K parameters to R points takes K of them for itself."""
        count = len(self.residual_R)
        free = max(count - len(self.value_K), 1)
        return (self.residual_R - np.median(self.residual_R)) * np.sqrt(count / free)


def robust_spread(error_R: np.ndarray) -> float:
    """Standard deviation of a normal distribution about 0 with the same median distance from 0."""
    return float(np.median(np.abs(error_R)) / _NORMAL_MEDIAN)


def quantiles(draw_B: np.ndarray, level: float) -> tuple[float, float]:
    """Ends of the interval that leaves as much out below as above; nan of nothing."""
    if not len(draw_B):
        return float("nan"), float("nan")
    low, high = np.quantile(draw_B, ((1.0 - level) / 2, (1.0 + level) / 2))
    return float(low), float(high)


def fit_law(
    law: Law,
    points: Points,
    *,
    target: Target | None = None,
    weight_R: np.ndarray | None = None,
    starts: Sequence[np.ndarray] | None = None,
) -> LawFit:
    """Fits a law; deterministic.

    Args:
        law: the form.
        points: at least two more than the law has parameters, else the fit is refused.
        target: what of the scores the law describes; the scores themselves unless told.
        weight_R: how often each point counts; once unless told.
        starts: parameters to start from, for a refit of nearly the same points; a grid unless told.

    Returns:
        The fit, `refused` where it means nothing. Too few points give a fit of nan.
    """
    target = target or Target()
    kept_R = np.isfinite(target.of(points.value_R))
    points = points.where(kept_R)
    reason = why_too_few(law, points, at_chance=1.0 - float(np.mean(kept_R)))
    if reason:
        nothing = np.full(len(law.parameters), np.nan)
        return LawFit(
            law=law,
            target=target,
            points=points,
            value_K=nothing,
            objective=float("nan"),
            residual_R=np.full(len(points), np.nan),
            refused=reason,
            draw_BK=np.zeros((0, len(nothing))),
        )
    weights_R = np.ones(len(points)) if weight_R is None else weight_R[kept_R]
    target_R, design = target.of(points.value_R), law.design(points.feature_R)
    value_K, objective = _minimum(law, design, target_R, weights_R, starts)
    fitted_R = design.evaluate(value_K)[0]
    return LawFit(
        law=law,
        target=target,
        points=points,
        value_K=value_K,
        objective=objective,
        residual_R=law.residual(target_R, fitted_R),
        refused=why_degenerate(law, value_K, target_R, fitted_R),
        draw_BK=np.zeros((0, len(value_K))),
    )


def _minimum(
    law: Law,
    design: Design,
    target_R: np.ndarray,
    weight_R: np.ndarray,
    starts: Sequence[np.ndarray] | None,
) -> tuple[np.ndarray, float]:
    """Parameters and objective of the best end over the starts.

    Searched in centred coordinates, which take two thirds of the steps; there a bound of an amplitude is none of one
    coordinate, so an end beyond it is searched again in the law's own.
    """
    if starts is None:
        starts = grid_starts(law, design, target_R, weight_R)[:_NUM_STARTS]
    centred, mean_P = design.centred()
    shift_P = (design.amplitude_P, design.exponent_P)
    bounds = [
        (None if position in design.amplitude_P else law.lower.get(name), None)
        for position, name in enumerate(law.parameters)
    ]
    starts = [_shifted(start, -mean_P, shift_P) for start in starts]
    best = _best_end(law, centred, target_R, weight_R, starts=starts, bounds=bounds)
    value_K = _shifted(best.x, mean_P, shift_P)
    if (value_K >= law.lower_K()).all():
        return value_K, float(best.fun)
    own = [(law.lower.get(name), None) for name in law.parameters]
    starts = [_shifted(start, mean_P, shift_P) for start in starts]
    best = _best_end(law, design, target_R, weight_R, starts=starts, bounds=own)
    return np.asarray(best.x), float(best.fun)


def _shifted(value_K: np.ndarray, mean_P: np.ndarray, positions: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    amplitude_P, exponent_P = positions
    moved_K = value_K.copy()
    moved_K[amplitude_P] += value_K[exponent_P] * mean_P
    return moved_K


def _best_end(
    law: Law,
    design: Design,
    target_R: np.ndarray,
    weight_R: np.ndarray,
    *,
    starts: Sequence[np.ndarray],
    bounds: Sequence[tuple[float | None, float | None]],
) -> optimize.OptimizeResult:
    """Goes a little from all starts, and to the end from where that led lowest."""
    objective = _objective(law, design, target_R, weight_R)

    def search(start_K: np.ndarray, tolerance: float) -> optimize.OptimizeResult:
        options = {"maxiter": 3000, "maxfun": 10_000, "ftol": tolerance, "gtol": 1e-10}
        return optimize.minimize(objective, start_K, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    lowest = sorted((search(start, _ROUGH) for start in starts), key=lambda end: float(end.fun))
    return min((search(end.x, _TIGHT) for end in lowest[: -(-len(lowest) // 2)]), key=lambda end: float(end.fun))


def _objective(
    law: Law, design: Design, target_R: np.ndarray, weight_R: np.ndarray
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The objective with its gradient, as scipy wants them together."""

    def huber(value_K: np.ndarray) -> tuple[float, np.ndarray]:
        fitted_R, power_PR = design.evaluate(value_K)
        safe_R = np.maximum(fitted_R, SMALLEST)
        residual_R = np.log(safe_R / target_R)
        clipped_R = np.minimum(np.maximum(residual_R, -HUBER_DELTA), HUBER_DELTA)
        pull_R = weight_R * clipped_R
        return float(pull_R @ (residual_R - 0.5 * clipped_R)), design.gradient(power_PR, pull_R / safe_R)

    unit = float(np.var(target_R)) or 1.0

    def squares(value_K: np.ndarray) -> tuple[float, np.ndarray]:
        fitted_R, power_PR = design.evaluate(value_K)
        residual_R = fitted_R - target_R
        pull_R = weight_R * residual_R / unit
        return float(pull_R @ residual_R), design.gradient(power_PR, 2 * pull_R)

    return huber if law.loss == "huber" else squares


def grid_starts(law: Law, design: Design, target_R: np.ndarray, weight_R: np.ndarray) -> list[np.ndarray]:
    """Starts, best first: at each combination of exponents the amplitudes of the least relative squares."""
    objective = _objective(law, design, target_R, weight_R)
    root_R = np.sqrt(weight_R)
    names = law.exponents
    linear_RL = (design.column_LR * root_R / target_R).T
    found = []
    for exponents in itertools.product(_EXPONENT_GRID, repeat=len(names)):
        start_K = np.zeros(len(law.parameters))
        start_K[[law.parameters.index(name) for name in names]] = exponents
        power_RP = (np.exp(-start_K[design.exponent_P, None] * design.log_PR) * root_R / target_R).T
        basis_RT = np.concatenate([power_RP, linear_RL], axis=1)
        scale_T = np.abs(basis_RT).max(axis=0)
        scale_T[scale_T == 0] = 1.0
        amplitude_T, distance = optimize.nnls(basis_RT / scale_T, root_R)
        amplitude_T = amplitude_T / scale_T
        start_K[design.amplitude_P] = np.log(np.maximum(amplitude_T[: len(design.amplitude_P)], SMALLEST))
        start_K[design.linear_L] = amplitude_T[len(design.amplitude_P) :]
        found.append((distance, np.maximum(start_K, law.lower_K())))
    nearest = sorted(found, key=lambda pair: pair[0])[:_NUM_SCREENED]
    return sorted((start_K for _, start_K in nearest), key=lambda start_K: objective(start_K)[0])
