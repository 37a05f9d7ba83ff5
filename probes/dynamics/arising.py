"""The order in which abilities arise in a run, who leads whom, and whether other runs agree on it.

Onsets and their intervals come from `probes.dynamics.onset`; here they are compared: a difference of two onsets is one
of all their draws, and an ability without an onset comes last.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from probes.dynamics.definitions import kendall
from probes.dynamics.onset import AT, BEFORE, Arising, arise, domain_curve
from probes.dynamics.table import CurveTable, Series
from probes.dynamics.trust import is_ability


@dataclass(frozen=True, kw_only=True, slots=True)
class Lead:
    """Which of two abilities of one run sets in first.

    Attributes:
        run: name of the run.
        first: domain or series, as given.
        second: the other.
        ratio: tokens at the second's onset over those at the first's: above 1 the first leads; nan where one of the two
            has no onset within its curve.
        low: lower end of its interval; nan with it.
        high: upper end.
        words: `leads`, `lags`, or `together` where the interval holds 1; `alone` where only the first has an onset,
            `unseen` where the first, or neither, has.
    """

    run: str
    first: str
    second: str
    ratio: float
    low: float
    high: float
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far two runs agree on the order of onsets.

    Attributes:
        first: name of a run.
        second: of another.
        tau: Kendall's τ-b of the order of the series both have, median under checkpoint noise; those without an onset
            share the last place. nan where that leaves no order.
        low: lower end of its interval.
        high: upper end.
        num_series: compared.
    """

    first: str
    second: str
    tau: float
    low: float
    high: float
    num_series: int


def order_of_arising(
    table: CurveTable, run: str, *, series: Collection[Series] | None = None, draws: int = 200, seed: int = 0
) -> list[Arising]:
    """Onset and saturation of each series of a run, earliest onset first, those without one last.

    Args:
        table: has the run.
        run: its name.
        series: which; all that measure an ability unless given.
        draws: of the bootstrap, see `arise`.
        seed: of the draws.
    """
    found = [
        arise(table, curve, draws=draws, seed=seed + index)
        for index, curve in enumerate(table.of_run(run))
        if (is_ability(curve) if series is None else curve.series in series)
    ]
    return sorted(found, key=lambda arising: (_place(arising), -arising.rise if np.isfinite(arising.rise) else 0.0))


def domains_arising(table: CurveTable, run: str, *, draws: int = 200, seed: int = 0) -> list[Arising]:
    """The same of the mean of each domain (`domain_curve`)."""
    curves = [curve for curve in table.of_run(run) if is_ability(curve)]
    found = []
    for index, domain in enumerate(dict.fromkeys(curve.domain for curve in curves)):
        mean = domain_curve(curves, domain)
        if mean is not None:
            found.append(arise(table, mean, draws=draws, seed=seed + index))
    return sorted(found, key=_place)


def leads(arisings: Sequence[Arising], *, level: float = 0.8) -> list[Lead]:
    """Lead or lag of every pair, the earlier of the list first.

    Args:
        arisings: of one run: domains or series, by onset.
        level: of the intervals.
    """
    return [_lead(first, second, level) for index, first in enumerate(arisings) for second in arisings[index + 1 :]]


def agreements(onsets: Mapping[str, Sequence[Arising]], *, level: float = 0.8) -> list[Agreement]:
    """Every pair of runs, in their order: whether the abilities set in in the same order.

    Args:
        onsets: of each run, see `order_of_arising`.
        level: of the intervals.
    """
    by_series = {run: {one.series: one for one in found} for run, found in onsets.items()}
    return [
        agree(by_series[first], by_series[second], first=first, second=second, level=level)
        for first, second in itertools.combinations(by_series, 2)
    ]


def agree(
    one: dict[Series, Arising], other: dict[Series, Arising], *, first: str, second: str, level: float = 0.8
) -> Agreement:
    """How far two runs agree on the order of onsets, from the onsets of each by series."""
    shared = [series for series in one if series in other]
    tau, low, high = (float("nan"),) * 3
    if len(shared) > 1:
        draws = [np.array([part[series].onset.drawn_B for series in shared]) for part in (one, other)]
        count = min(drawn.shape[1] for drawn in draws)
        taus_B = np.array([_tau(draws[0][:, draw], draws[1][:, draw]) for draw in range(count)])
        if np.isfinite(taus_B).any():
            low, tau, high = (float(end) for end in np.nanquantile(taus_B, [0.5 - level / 2, 0.5, 0.5 + level / 2]))
    return Agreement(first=first, second=second, tau=tau, low=low, high=high, num_series=len(shared))


def _place(arising: Arising) -> float:
    """Tokens at the onset; 0 before the first checkpoint, inf without one."""
    return {AT: arising.onset.tokens, BEFORE: 0.0}.get(arising.onset.state, float("inf"))


def _name(arising: Arising) -> str:
    return arising.domain if arising.series.task == "mean" else str(arising.series)


def _lead(first: Arising, second: Arising, level: float) -> Lead:
    ratio, low, high = (float("nan"),) * 3
    if first.onset.state == AT and second.onset.state == AT:
        ratio = second.onset.tokens / first.onset.tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_B = second.onset.drawn_B / first.onset.drawn_B
        # inf / inf: neither set in in this draw.
        known_B = ratio_B[~np.isnan(ratio_B)]
        low, high = (float(end) for end in np.quantile(known_B, [0.5 - level / 2, 0.5 + level / 2], method="nearest"))
        words = "leads" if low > 1.0 else "lags" if high < 1.0 else "together"
    elif first.onset.state in (AT, BEFORE):
        if second.onset.state in (AT, BEFORE):
            words = "together" if first.onset.state == second.onset.state else "leads"
            words = "lags" if first.onset.state == AT else words
        else:
            words = "alone"
    else:
        words = "unseen"
    return Lead(run=first.run, first=_name(first), second=_name(second), ratio=ratio, low=low, high=high, words=words)


def _tau(first_S: np.ndarray, second_S: np.ndarray) -> float:
    """Kendall's τ-b; ranks, since inf minus inf has no sign."""
    return kendall(stats.rankdata(first_S), stats.rankdata(second_S))
