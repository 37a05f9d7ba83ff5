"""A task's score as a function of model size and tokens, learned from runs of a family: laws, and what they leave over.

Mean of two laws with weak priors, each of which errs where the other does not (one ignores chance, the other has no
floor), plus a Gaussian process on the remainder with each run's own offset. Sizes and tokens that no run has reached
are extrapolated by the laws; where they part, the band widens. How well it does is measured by `tests.bench.dynamics`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from probes.dynamics.gp import Process, Scores, Term, fit
from probes.dynamics.noise import judged_value, noise_of
from probes.dynamics.table import CurveTable, Series, TaskCurve

TERMS = (
    Term(name="constant", kind="constant", deviation=0.5),
    Term(name="size", kind="linear", columns=((0,),), deviation=0.1),
    Term(name="tokens", kind="linear", columns=((1,),), deviation=0.1),
    Term(name="smooth", kind="smooth", columns=((0,), (1,)), deviation=0.4, lengths=(0.7, 0.5)),
    Term(name="run", kind="constant", deviation=0.6, within=(2,)),
    Term(name="run over tokens", kind="smooth", columns=((1,),), deviation=0.4, lengths=(0.7,), within=(2,)),
)
"""Over log10 N, log10 D (each from its `Origin`) and the run's index; deviations in units of what the laws leave."""

EARLIEST_SHARE = 0.005
"""Of a run's tokens: checkpoints before that are in another regime (Pythia's step 512 is left out, 1,000 is in)."""

MOST_CHECKPOINTS = 24
"""Scores a run and task that are looked at; more checkpoints are averaged to so many."""

_FEWEST_CHECKPOINTS = 8
_MOST_SCORES = 320
_NEW_RUN = -1.0
_MOST_EVALUATIONS = 5_000
"""The most evaluations of the residuals in one fit. A flat valley takes hundreds of steps. SciPy's default limit (500
for five parameters) ended such a fit early or not, depending on the rounding of the processor."""

_PRIOR_WEIGHT = 2.0
"""Of a parameter one prior deviation off, against a score one noise deviation off."""


@dataclass(frozen=True, slots=True)
class Band:
    """Predictions at Q positions, in the metric's judged unit (`probes.dynamics.noise.judged_value`).

    Attributes:
        mean_Q: the curve.
        curve_deviation_Q: standard deviation of the curve.
        covariance_QQ: of new scores there, checkpoint noise included.
    """

    mean_Q: np.ndarray
    curve_deviation_Q: np.ndarray
    covariance_QQ: np.ndarray

    @property
    def score_deviation_Q(self) -> np.ndarray:
        """Standard deviation of one new score."""
        return np.sqrt(np.diag(self.covariance_QQ))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where sizes and tokens are measured from, so that priors fit runs of every size.

    Attributes:
        size: log10 of parameters: the runs' mean.
        tokens: log10 of tokens: half a decade before the furthest checkpoint.
    """

    size: float
    tokens: float

    def positions(self, parameters: float, tokens_Q: np.ndarray, run: float) -> np.ndarray:
        """The features_QF of a run at these tokens."""
        size = np.full(len(tokens_Q), np.log10(parameters) - self.size)
        return np.column_stack([size, np.log10(tokens_Q) - self.tokens, np.full(len(tokens_Q), run)])


@dataclass(frozen=True, slots=True)
class Laws:
    """q = bound − score, in two forms of n and d, size and tokens over those of the `Origin`.

    `power`: q = A n^−α + B d^−β + E. `direct`: where chance is known, −log Q = A n^−α + B d^−β with Q the score
    rescaled to 0 at chance (Apple's direct law, arXiv 2512.08894); for losses, log q = A n^−α + B d^−β + E.

    Attributes:
        bound: the best possible score: 1, or 0 for losses with their sign turned.
        room: bound minus chance; nan where chance means nothing.
        power: logarithms of A, α, B, β, E.
        direct: logarithms of A, α, B, β; for losses then E itself.
    """

    bound: float
    room: float
    power: np.ndarray
    direct: np.ndarray

    def both(self, position_QF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores_Q by each of them."""
        size_Q, tokens_Q = 10.0 ** position_QF[:, 0], 10.0 ** position_QF[:, 1]
        power_Q = _power(self.power, size_Q, tokens_Q)
        return self.bound - power_Q, self.bound - _direct(self.direct, size_Q, tokens_Q, self.room)


class Surface:
    """What is known of one series over sizes and tokens.

    Made by `fit_surfaces`.
    """

    def __init__(
        self, origin: Origin, laws: Laws, process: Process, rest: Scores, runs: Mapping[str, int], noise: float
    ) -> None:
        self.origin = origin
        self.laws = laws
        self._process = process
        self._rest = rest
        self._runs = runs
        self.noise = noise

    def with_run(self, curve: TaskCurve, *, parameters: float) -> Surface:
        """The surface once another run's scores are known, too: its offset is learnt, laws and kernel stay.

        Args:
            curve: of a run the surface was fitted without; the very first checkpoints left out (`relevant`).
            parameters: of that run.
        """
        index = max(self._runs.values(), default=-1) + 1
        tokens_P, value_P, count_P = _thinned(curve, MOST_CHECKPOINTS)
        position_PF = self.origin.positions(parameters, tokens_P, index)
        power_P, direct_P = self.laws.both(position_PF)
        known = Scores(
            np.concatenate([self._rest.feature_PF, position_PF]),
            np.concatenate([self._rest.value_P, value_P - 0.5 * (power_P + direct_P)]),
            np.concatenate([self._rest.noise_P, self.noise / np.sqrt(count_P)]),
        )
        return Surface(self.origin, self.laws, self._process, known, {**self._runs, curve.run: index}, self.noise)

    def predict(self, *, parameters: float, tokens_Q: np.ndarray, run: str | None = None) -> Band:
        """The curve of a run at these tokens.

        Args:
            parameters: its N.
            tokens_Q: where; above 0.
            run: a run the surface was fitted with, whose own past then counts; None for a run never seen.
        """
        index = self._runs.get(run, _NEW_RUN) if run is not None else _NEW_RUN
        at = Scores(
            self.origin.positions(parameters, tokens_Q, index),
            np.zeros(len(tokens_Q)),
            np.full(len(tokens_Q), self.noise),
        )
        rest_Q, covariance_QQ = self._process.posterior(self._rest, at)
        power_Q, direct_Q = self.laws.both(at.feature_PF)
        # The laws' disagreement is an error of their mean; what a run's own scores have settled of it is no longer one.
        parted_Q = 0.5 * (power_Q - direct_Q) - self._settled(index)
        covariance_QQ = covariance_QQ + np.outer(parted_Q, parted_Q)
        curve_Q = np.sqrt(np.maximum(np.diag(covariance_QQ), 0.0))
        noise_Q = self._process.noise_factor * at.noise_P
        return Band(0.5 * (power_Q + direct_Q) + rest_Q, curve_Q, covariance_QQ + np.diag(noise_Q**2))

    def _settled(self, index: float) -> float:
        own_P = self._rest.feature_PF[:, 2] == index
        if index == _NEW_RUN or not own_P.any():
            return 0.0
        last = self._rest.feature_PF[own_P][-1:]
        power, direct = self.laws.both(last)
        return float(0.5 * (power[0] - direct[0]))


def fit_surfaces(table: CurveTable, *, runs: Sequence[str], series: Collection[Series]) -> dict[Series, Surface]:
    """One surface for each series, with hyper-parameters that all share.

    Args:
        table: what is known; later checkpoints must have been left out by the caller (`CurveTable.until`).
        runs: with known parameters; not all need to have every series.
        series: those that no run has enough of are left out of the result.
    """
    origin = _origin(table, runs)
    prepared = [(one, found) for one in series if (found := _prepare(table, runs, one, origin)) is not None]
    if not prepared:
        return {}
    process = fit(TERMS, [rest for _, (_, rest, _) in prepared])
    indices = {name: index for index, name in enumerate(runs)}
    return {one: Surface(origin, laws, process, rest, indices, noise) for one, (laws, rest, noise) in prepared}


def relevant(curve: TaskCurve, total_tokens: float | None) -> TaskCurve:
    """Without step 0 and the very first checkpoints."""
    last = total_tokens or float(curve.tokens_C[-1])
    return curve.where((curve.tokens_C > 0) & (curve.tokens_C >= EARLIEST_SHARE * last))


def _origin(table: CurveTable, runs: Sequence[str]) -> Origin:
    sizes = [np.log10(size) for name in runs if (size := table.runs[name].parameters)]
    furthest = max((table.last_tokens(name) for name in runs), default=0.0)
    return Origin(float(np.mean(sizes)) if sizes else 0.0, float(np.log10(max(furthest, 1.0))) - 0.5)


def _prepare(
    table: CurveTable, runs: Sequence[str], series: Series, origin: Origin
) -> tuple[Laws, Scores, float] | None:
    positions, values, noises, counts = [], [], [], []
    curve = None
    most = int(np.clip(_MOST_SCORES / max(len(runs), 1), _FEWEST_CHECKPOINTS, MOST_CHECKPOINTS))
    for index, name in enumerate(runs):
        facts, found = table.runs[name], table.get(name, series)
        if found is None or not facts.parameters:
            continue
        curve = relevant(found, facts.total_tokens)
        tokens_P, value_P, count_P = _thinned(curve, most)
        positions.append(origin.positions(facts.parameters, tokens_P, index))
        values.append(value_P)
        counts.append(count_P)
        noises.append(noise_of(curve))
    if curve is None or sum(map(len, values)) < 5:
        return None
    position_PF, value_P = np.concatenate(positions), np.concatenate(values)
    known = [noise for noise in noises if np.isfinite(noise)]
    noise = float(np.median(known)) if known else 0.1 * float(np.std(value_P))
    laws = fit_laws(
        position_PF,
        value_P,
        noise=noise,
        bound=0.0 if curve.lower_is_better else 1.0,
        chance=curve.chance,
    )
    power_P, direct_P = laws.both(position_PF)
    rest = Scores(position_PF, value_P - 0.5 * (power_P + direct_P), noise / np.sqrt(np.concatenate(counts)))
    return laws, rest, noise


def _thinned(curve: TaskCurve, at_most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, judged scores, and of how many checkpoints each is the mean: inference costs the cube of their number.

    Checkpoints are averaged over equal stretches of log tokens, so that dense late ones make one calmer score.
    """
    value_C, position_C = judged_value(curve), np.log(curve.tokens_C)
    if len(curve) <= at_most:
        return curve.tokens_C, value_C, np.ones(len(curve))
    edges = np.linspace(position_C[0], position_C[-1], at_most + 1)[1:-1]
    _, group_C = np.unique(np.digitize(position_C, edges), return_inverse=True)
    count_P = np.bincount(group_C)
    return (
        np.exp(np.bincount(group_C, position_C) / count_P),
        np.bincount(group_C, value_C) / count_P,
        count_P.astype(np.float64),
    )


def fit_laws(position_PF: np.ndarray, value_P: np.ndarray, *, noise: float, bound: float, chance: float) -> Laws:
    """Both laws by soft-L1 least squares with log-normal priors.

    Args:
        position_PF: log10 N and log10 D from the origin in the first columns.
        value_P: judged scores.
        noise: of one score.
        bound: 1, or 0 for losses with their sign turned.
        chance: the score of guessing; nan where it means nothing.
    """
    size_P, tokens_P = 10.0 ** position_PF[:, 0], 10.0 ** position_PF[:, 1]
    distance_P = bound - value_P
    spread = max(float(np.ptp(distance_P)), noise)
    is_loss = bound == 0.0
    lowest = max(0.5 * float(distance_P.min()), 0.02 * (1.0 if not is_loss else abs(float(distance_P.min()))))
    centre = np.log([0.5 * spread, 0.3, 0.5 * spread, 0.3, lowest])
    power = _least_squares(
        lambda p: _power(p, size_P, tokens_P) - distance_P, centre, np.array([1.0, 0.7, 1.0, 0.7, 1.0]), noise
    )
    room = bound - (0.0 if not np.isfinite(chance) else chance)
    if is_loss:
        room = float("nan")
        begin = np.append(np.log([0.3, 0.3, 0.3, 0.3]), np.log(max(float(distance_P.min()), 1e-9)))
        deviation = np.array([1.0, 0.5, 1.0, 0.5, 1.0])
    else:
        begin, deviation = np.log([0.5, 0.3, 0.3, 0.3]), np.array([1.0, 0.5, 1.0, 0.5])
    direct = _least_squares(lambda p: _direct(p, size_P, tokens_P, room) - distance_P, begin, deviation, noise)
    return Laws(bound, room, power, direct)


def _power(parameters: np.ndarray, size_Q: np.ndarray, tokens_Q: np.ndarray) -> np.ndarray:
    a, alpha, b, beta, floor = np.exp(parameters)
    return a * size_Q**-alpha + b * tokens_Q**-beta + floor


def _direct(parameters: np.ndarray, size_Q: np.ndarray, tokens_Q: np.ndarray, room: float) -> np.ndarray:
    a, alpha, b, beta = np.exp(parameters[:4])
    exponent_Q = np.minimum(a * size_Q**-alpha + b * tokens_Q**-beta, 50.0)
    if len(parameters) > 4:
        return np.exp(exponent_Q + parameters[4])
    return room * -np.expm1(-exponent_Q)


def _least_squares(
    residual: Callable[[np.ndarray], np.ndarray], centre: np.ndarray, deviation: np.ndarray, noise: float
) -> np.ndarray:
    def weighted(parameters: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            off = np.nan_to_num(residual(parameters) / noise, nan=1e6, posinf=1e6, neginf=-1e6)
        return np.concatenate([off, _PRIOR_WEIGHT * (parameters - centre) / deviation])

    bounds = (centre - 6.0 * deviation, centre + 6.0 * deviation)
    found: np.ndarray = optimize.least_squares(
        weighted, centre, loss="soft_l1", bounds=bounds, max_nfev=_MOST_EVALUATIONS
    ).x
    return found
