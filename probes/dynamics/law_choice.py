"""Which law of the loss a table can carry: what `--law auto` takes for each loss.

The law that errs least on the largest and longest of the runs themselves (`probes.dynamics.hold_out`); a law of FLOPs
where size and length were never varied apart.
"""

from __future__ import annotations

from probes.dynamics.fit_law import LawFit, fit_law
from probes.dynamics.hold_out import held_out, with_intervals
from probes.dynamics.law_points import Points
from probes.dynamics.laws import DIRECT, DIRECT_FLOPS, FLOPS_LAW, LADDER, ONE_EXPONENT, Law, Target
from probes.dynamics.refusal import why_too_few

_OF_LOSSES = (ONE_EXPONENT, LADDER)
"""In the order in which they are taken where nothing can be held out: fewer parameters first."""


def fit_best(points: Points, *, target: Target, draws: int) -> LawFit:
    """The fit of the law of a loss that suits these points, with intervals; refused if none does."""
    fits = [fit_law(law, points, target=target) for law in _OF_LOSSES if why_too_few(law, points) is None]
    if not fits:
        return _refused_or_flops(points, FLOPS_LAW, instead_of=ONE_EXPONENT, target=target, draws=draws)
    errors = {fit.law.name: held_out(fit.law, fit.points, target=target) for fit in fits}

    def rank(fit: LawFit) -> tuple[bool, float]:
        error = errors[fit.law.name]
        return fit.refused is not None, float("inf") if error is None else error.root_mean_square

    best = min(fits, key=rank)
    return with_intervals(best, draws=draws, error=errors[best.law.name])


def fit_direct(points: Points, *, target: Target, draws: int) -> LawFit:
    """The same for a score without a loss to start from."""
    if why_too_few(DIRECT, points) is not None:
        return _refused_or_flops(points, DIRECT_FLOPS, instead_of=DIRECT, target=target, draws=draws)
    return with_intervals(fit_law(DIRECT, points, target=target), draws=draws)


def _refused_or_flops(points: Points, flops: Law, *, instead_of: Law, target: Target, draws: int) -> LawFit:
    """The law of FLOPs, or the other law's refusal if the points do not even suffice for that."""
    fit = fit_law(flops, points, target=target)
    if why_too_few(flops, points) is not None:
        fit = fit_law(instead_of, points, target=target)
    return with_intervals(fit, draws=draws)
