"""What a law is wrong by beyond its points, measured on the points: the largest and the longest runs are held out.

Resampled fits see the noise of the points, not that the form itself is a little wrong. How wrong differs from table to
table, so it is measured on each: intervals and the choice between laws both rest on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from probes.dynamics.fit_law import LawFit, fit_law, robust_spread
from probes.dynamics.law_points import Points
from probes.dynamics.laws import PARAMETERS, TOKENS, Law, Target
from probes.dynamics.resample import DEFAULT_DRAWS, resample

_LONGEST = 0.75
"""Quantile of tokens per parameter from which a run is among the longest."""
_FEWEST_HELD_OUT = 2
_LEAST_SPREAD = 1.5
"""Times by which tokens per parameter must differ for some runs to be long."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How far a law is off where it was not fitted, in units of `LawFit.residual_R`.

    Attributes:
        spread: robust standard deviation of the residuals, for intervals.
        root_mean_square: of the same residuals, for the choice between laws.
    """

    spread: float
    root_mean_square: float


def held_out(law: Law, points: Points, *, target: Target | None = None) -> HeldOut | None:
    """How far a law is off at the largest sizes and at the longest runs, each held out by itself; the mean of the two.

    None where what is left cannot be fitted.
    """
    spreads, roots = [], []
    for held_R in _splits(points):
        fit = fit_law(law, points.where(~held_R), target=target)
        if not np.isfinite(fit.value_K).all():
            continue
        asked = points.where(held_R)
        target_R = fit.target.of(asked.value_R)
        residual_R = law.residual(target_R, law.values(fit.value_K, asked.feature_R))
        if np.isfinite(residual_R).all():
            spreads.append(robust_spread(residual_R))
            roots.append(float(np.sqrt(np.mean(residual_R**2))))
    return HeldOut(float(np.mean(spreads)), float(np.mean(roots))) if spreads else None


def with_intervals(fit: LawFit, *, draws: int = DEFAULT_DRAWS, error: HeldOut | None = None) -> LawFit:
    """The fit with resampled fits, and with the spread of the held-out residuals added to them.

    Where the points are too few to hold some out, the widening that was measured on the OLMo ladder stands in. Chosen
    on the losses of Gadre et al.'s C4 models and of the OLMo ladder's runs up to 1B: at a level of .80 intervals hold
    .75 of the former, and of the latter .81 (1B), .74 (10xC) and .72 (both); with half the spread .75, .70, .49, .67.

    Args:
        fit: of `probes.dynamics.fit_law`, to final points of runs.
        draws: resampled fits; 0 leaves the fit as it is.
        error: of `held_out`, if it is known already.
    """
    if not draws or not np.isfinite(fit.value_K).all():
        return fit
    error = error or held_out(fit.law, fit.points, target=fit.target)
    if error is None:
        return resample(fit, draws=draws)
    return replace(resample(fit, draws=draws, widening=1.0), law_error=error.spread, robust=True)


def _splits(points: Points) -> list[np.ndarray]:
    """Boolean arrays of the points to hold out."""
    size_R, tokens_R = points.feature_R[PARAMETERS], points.feature_R[TOKENS]
    if len(points) <= _FEWEST_HELD_OUT:
        return []
    ratio_R = tokens_R / size_R
    found = [size_R >= np.sort(size_R)[-_FEWEST_HELD_OUT]]
    if ratio_R.max() > _LEAST_SPREAD * ratio_R.min():
        found.append(ratio_R >= np.quantile(ratio_R, _LONGEST))
    return found
