"""When a fitted law means nothing: what the points lack, and what a fit's parameters betray.

Reasons are sentences with numbers, for people. They are rules of the law and its points alone; whether a task is above
chance in the first place is for `probes.dynamics.chance`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from probes.dynamics.law_points import Points
from probes.dynamics.laws import FLOPS, PARAMETERS, TOKENS, Law

MIN_EXPONENT = 0.05
"""Below it a power term is a slow drift that no data of two decades tell from a constant or a logarithm."""
MIN_FLOOR_SHARE = 1e-3
"""Of the smallest target; a floor below it is at its bound."""
MAX_COLLINEARITY = 0.98
"""Correlation of log N and log D from which their terms cannot be told apart."""
MIN_EXPLAINED = 0.5
"""Share of the points' variance below which a law describes noise."""
MAX_AT_CHANCE = 0.1
"""Share of the points that may be left out since their scores are not above chance: what remains is there by luck."""

MAX_OFF_LINE = 2.0
"""Times by which a size may differ from what the points have at the same FLOPs (or twice as far as the points do)."""


def why_too_few(law: Law, points: Points, *, at_chance: float = 0.0, count: bool = True) -> str | None:
    """What the points lack, in words; None if nothing.

    Args:
        law: what is to be fitted.
        points: those that have a target.
        at_chance: share of all points that have none.
        count: asks for two more points than parameters.
    """
    if at_chance > MAX_AT_CHANCE:
        return f"{at_chance:.0%} of the points are not above chance; what the others show may be luck."
    needed = len(law.parameters) + 2
    if count and len(points) < needed:
        return f"{len(points)} points for {len(law.parameters)} parameters; at least {needed} are needed."
    for name, least in law.num_distinct.items():
        found = len(np.unique(points.feature_R[name]))
        if found < least:
            return f"{found} different values of {name.replace('_', ' ')}; at least {least} are needed."
    if {PARAMETERS, TOKENS} <= set(law.features):
        log_N, log_D = (np.log(points.feature_R[name]) for name in (PARAMETERS, TOKENS))
        if abs(np.corrcoef(log_N, log_D)[0, 1]) > MAX_COLLINEARITY:
            return "size and tokens rise together, so their terms cannot be told apart; fit the law of FLOPs."
    return None


def why_off_line(law: Law, points: Points, at: Mapping[str, float]) -> str | None:
    """Why a law of FLOPs alone says nothing of this size and length, in words; None if it may, and for other laws.

    The points may all have 20 tokens a parameter, or all one length: a run with as many FLOPs that spends them
    otherwise is none of those.
    """
    if law.features != (FLOPS,) or not {PARAMETERS, TOKENS} <= set(at) or PARAMETERS not in points.feature_R:
        return None
    log_N, log_C = np.log(points.feature_R[PARAMETERS]), np.log(points.feature_R[FLOPS])
    line = np.polyfit(log_C, log_N, 1)
    allowed = max(np.log(MAX_OFF_LINE), 2 * float(np.abs(log_N - np.polyval(line, log_C)).max()))
    usual = float(np.exp(np.polyval(line, np.log(at[FLOPS]))))
    if abs(np.log(at[PARAMETERS] / usual)) <= allowed:
        return None
    return (
        f"runs like the fitted ones have about {usual:.2g} parameters at {at[FLOPS]:.2g} FLOPs, not "
        f"{at[PARAMETERS]:.2g} with {at[TOKENS]:.2g} tokens, and a law of FLOPs knows no others. Fit runs that differ "
        f"in tokens per parameter too."
    )


def why_degenerate(law: Law, value_K: np.ndarray, target_R: np.ndarray, fitted_R: np.ndarray) -> str | None:
    """What shows that a fit means nothing, in words with the numbers; None if nothing does.

    Args:
        law: the form.
        value_K: its fitted parameters.
        target_R: what was fitted.
        fitted_R: what the fit makes of it.
    """
    if not np.isfinite(value_K).all():
        return "the fit did not converge."
    found = dict(zip(law.parameters, value_K, strict=True))
    if law.floor and found[law.floor] <= MIN_FLOOR_SHARE * float(np.min(target_R)):
        return f"{law.floor} is at its bound, 0: what remains at infinite size cannot be told from the points."
    for name in law.exponents:
        if found[name] < MIN_EXPONENT:
            return f"the exponent {name} is {found[name]:.3f}, below {MIN_EXPONENT:g}: the term hardly falls."
    if "slope" in found and found["slope"] <= 0:
        return "the slope is at its bound, 0: the loss does not fall with compute."
    explained = 1.0 - float(np.var(law.residual(target_R, fitted_R)) / np.var(law.residual(target_R, target_R[:1])))
    if explained < MIN_EXPLAINED:
        return (
            f"the law explains {max(explained, 0.0):.0%} of the points' variance, less than {MIN_EXPLAINED:.0%}: noise."
        )
    return None
