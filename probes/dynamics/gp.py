"""Gaussian-process regression with an additive kernel whose hyper-parameters many tasks share.

Exact inference: a task has some hundred scores, not more. What is regressed on what is said by a list of terms;
`probes.dynamics.surface` has the one over model size and tokens, `probes.dynamics.siblings` the one over other tasks.
Formulas: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), 2.2 and 5.4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One summand of a kernel.

    Attributes:
        name: for messages.
        kind: `constant`; `linear`, Σ x_c x'_c over its columns; `product`, Π x_c x'_c; `smooth`, exp(−½ Σ (Δ_c / ℓ)²).
        columns: feature columns; those of one inner tuple share a length scale.
        deviation: median of the prior of its standard deviation, in units of the standardised scores.
        lengths: medians of the priors of its length scales, one for each inner tuple; `smooth` alone has some.
        within: feature columns that must be equal for two scores to share it: a run's own, a task's own.
    """

    name: str
    kind: str
    columns: tuple[tuple[int, ...], ...] = ()
    deviation: float = 1.0
    lengths: tuple[float, ...] = ()
    within: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one task; P of them, F features.

    Attributes:
        feature_PF: what the scores depend on; indices of runs and tasks among it, as numbers.
        value_P: the scores, more is better. Not looked at where a prediction is asked for.
        noise_P: standard deviation of what is not the curve's: a first estimate, which the fit scales by one factor.
    """

    feature_PF: np.ndarray
    value_P: np.ndarray
    noise_P: np.ndarray

    def __len__(self) -> int:
        return len(self.value_P)

    def where(self, keep_P: np.ndarray) -> Scores:
        """The scores for which a boolean array (or indices) holds."""
        return Scores(self.feature_PF[keep_P], self.value_P[keep_P], self.noise_P[keep_P])


_DEVIATION_SPREAD = 0.7
_LENGTH_SPREAD = 0.5
_NOISE_SPREAD = 0.4
"""Standard deviations of the logarithms of hyper-parameters in their priors: a factor of two, roughly."""
_JITTER = 1e-8


@dataclass(frozen=True, slots=True)
class Process:
    """A kernel with its hyper-parameters.

    Attributes:
        terms: the summands.
        theta: logarithms of the terms' deviations, then of all length scales, then of the factor on the noise.
    """

    terms: tuple[Term, ...]
    theta: np.ndarray

    @classmethod
    def prior(cls, terms: Sequence[Term]) -> Process:
        """The kernel at the medians of its priors."""
        medians = [term.deviation for term in terms] + [length for term in terms for length in term.lengths] + [1.0]
        return cls(tuple(terms), np.log(medians))

    @property
    def noise_factor(self) -> float:
        """What the first estimates of noise are multiplied with."""
        return float(np.exp(self.theta[-1]))

    def posterior(self, scores: Scores, at: Scores) -> tuple[np.ndarray, np.ndarray]:
        """Mean_Q and covariance_QQ of the curves, without noise, at the Q points of `at`, in the scores' unit."""
        centre, scale = scale_of(scores)
        known = _Kernel(self.terms, scores, scores)
        kernel_PP = known.matrix(self.theta) + np.diag(_variance(scores, self.noise_factor / scale))
        cross_PQ = _Kernel(self.terms, scores, at).matrix(self.theta)
        factor = linalg.cho_factor(kernel_PP, lower=True)
        mean_Q = cross_PQ.T @ linalg.cho_solve(factor, (scores.value_P - centre) / scale)
        reduced_PQ = linalg.solve_triangular(factor[0], cross_PQ, lower=True)
        covariance_QQ = _Kernel(self.terms, at, at).matrix(self.theta) - reduced_PQ.T @ reduced_PQ
        return centre + scale * mean_Q, scale**2 * covariance_QQ

    def deviation(self, covariance_QQ: np.ndarray, at: Scores) -> np.ndarray:
        """Standard deviation_Q of new scores: the curves' uncertainty and the noise together."""
        return np.sqrt(np.maximum(np.diag(covariance_QQ), 0.0) + (self.noise_factor * at.noise_P) ** 2)


def fit(terms: Sequence[Term], tasks: Sequence[Scores], *, start: Process | None = None) -> Process:
    """Hyper-parameters that make the scores of all these tasks together most probable (MAP, log-normal priors).

    Args:
        terms: the kernel.
        tasks: each is standardised by itself; all share the hyper-parameters.
        start: begin the search here.
    """
    prior = Process.prior(terms)
    num_lengths = len(prior.theta) - len(terms) - 1
    spread = np.array([_DEVIATION_SPREAD] * len(terms) + [_LENGTH_SPREAD] * num_lengths + [_NOISE_SPREAD])
    likelihoods = [_Likelihood(prior.terms, scores) for scores in tasks]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        off = (theta - prior.theta) / spread
        total, gradient = 0.5 * float(off @ off), off / spread
        for likelihood in likelihoods:
            value, slope = likelihood.negative_log(theta)
            total, gradient = total + value, gradient + slope
        return total, gradient

    bounds = list(zip(prior.theta - 4 * spread, prior.theta + 4 * spread, strict=True))
    begin = start.theta if start is not None else prior.theta
    found = optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
    return Process(prior.terms, found.x)


def scale_of(scores: Scores) -> tuple[float, float]:
    """Mean and spread by which a task's scores are made comparable with others'."""
    spread = float(np.std(scores.value_P))
    return float(np.mean(scores.value_P)), max(spread, float(np.median(scores.noise_P)), 1e-9)


class _Kernel:
    """The terms between two lists of points, with what hyper-parameters do not change computed once."""

    def __init__(self, terms: Sequence[Term], left: Scores, right: Scores) -> None:
        self._terms = terms
        self._bases = [_base(term, left.feature_PF, right.feature_PF) for term in terms]
        self._distances = [_squared_distances(term, left.feature_PF, right.feature_PF) for term in terms]

    def matrix(self, theta: np.ndarray) -> np.ndarray:
        """The whole kernel."""
        return sum(self.parts(theta)[0], start=np.zeros_like(self._bases[0]))

    def parts(self, theta: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The summands, and the derivative by each length's logarithm."""
        variances, lengths = np.exp(2 * theta[: len(self._terms)]), np.exp(-2 * theta[len(self._terms) : -1])
        summands, slopes, used = [], [], 0
        for base, distances, variance in zip(self._bases, self._distances, variances, strict=True):
            summand = variance * base
            scaled = [lengths[used + i] * distance for i, distance in enumerate(distances)]
            if scaled:
                summand = summand * np.exp(-0.5 * sum(scaled[1:], start=scaled[0]))
            slopes += [summand * distance for distance in scaled]
            summands.append(summand)
            used += len(distances)
        return summands, slopes


class _Likelihood:
    """Of one task's standardised scores."""

    def __init__(self, terms: Sequence[Term], scores: Scores) -> None:
        centre, scale = scale_of(scores)
        self._value_P = (scores.value_P - centre) / scale
        self._noise_P = (scores.noise_P / scale) ** 2
        self._kernel = _Kernel(terms, scores, scores)

    def negative_log(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Its value without constants, and the derivative by theta (5.9): ½ tr((K⁻¹ − ααᵀ) ∂K)."""
        summands, slopes = self._kernel.parts(theta)
        noise_P = np.exp(2 * theta[-1]) * self._noise_P
        kernel_PP = sum(summands, start=np.diag(noise_P + _JITTER))
        factor = linalg.cho_factor(kernel_PP, lower=True, check_finite=False)
        alpha_P = linalg.cho_solve(factor, self._value_P, check_finite=False)
        inner_PP = linalg.cho_solve(factor, np.eye(len(alpha_P)), check_finite=False) - np.outer(alpha_P, alpha_P)
        value = 0.5 * float(self._value_P @ alpha_P) + float(np.log(np.diag(factor[0])).sum())
        gradient = [float(np.vdot(inner_PP, summand)) for summand in summands]
        gradient += [0.5 * float(np.vdot(inner_PP, slope)) for slope in slopes]
        gradient.append(float(np.diag(inner_PP) @ noise_P))
        return value, np.array(gradient)


def _base(term: Term, left_PF: np.ndarray, right_QF: np.ndarray) -> np.ndarray:
    columns = [column for group in term.columns for column in group]
    base_PQ = np.ones((len(left_PF), len(right_QF)))
    for column in term.within:
        base_PQ = base_PQ * (left_PF[:, column][:, None] == right_QF[:, column])
    if term.kind == "linear":
        return base_PQ * (left_PF[:, columns] @ right_QF[:, columns].T)
    if term.kind == "product":
        for column in columns:
            base_PQ = base_PQ * np.outer(left_PF[:, column], right_QF[:, column])
    return base_PQ


def _squared_distances(term: Term, left_PF: np.ndarray, right_QF: np.ndarray) -> list[np.ndarray]:
    if term.kind != "smooth":
        return []
    return [
        sum(((left_PF[:, c][:, None] - right_QF[:, c]) ** 2 for c in group), start=np.zeros(1))
        for group in term.columns
    ]


def _variance(scores: Scores, factor: float) -> np.ndarray:
    return (factor * scores.noise_P) ** 2 + _JITTER
