"""The functional forms of scaling laws, as data: sums of power terms and linear terms in named features.

A law only says what it is (formula, parameters, bounds, what is minimised, what makes it degenerate); it is fitted in
`probes.dynamics.fit_law`. Scores enter through a `Target`, which turns them into something that falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from probes.dynamics.metrics import is_lower_better, is_perplexity

PARAMETERS, TOKENS, FLOPS = "parameters", "tokens", "flops"
FORWARD_AREA, ANNEALING_AREA = "forward_area", "annealing_area"
HUBER_DELTA = 1e-3
"""Where Huber's loss of log residuals goes from squares to absolutes (Hoffmann et al.; the OLMo ladder)."""
SMALLEST = 1e-12
"""Stands in for 0 and below where a logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Power:
    """The term e^amplitude · (scale · feature)^−exponent; `amplitude` and `exponent` name parameters."""

    amplitude: str
    exponent: str
    feature: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """The term sign · parameter · feature: a constant without a feature, in the feature's logarithm if `of_log`."""

    parameter: str
    feature: str = ""
    sign: float = 1.0
    of_log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A functional form.

    Attributes:
        name: as the command line calls it.
        formula: for people.
        source: paper the form and its fitting are from.
        terms: summed.
        parameters: names, in the order of a fit's `value_K`.
        lower: least values of parameters that have one.
        floor: the parameter that stays when all features grow; the law is degenerate with it at 0. None without.
        loss: what is minimised: `huber` on log residuals, or `squares`.
        num_distinct: values a feature must have at least among the points.
        max_ratio: times by which a feature may leave the range of the points, down or up.
    """

    name: str
    formula: str
    source: str
    terms: tuple[Power | Linear, ...]
    parameters: tuple[str, ...]
    lower: Mapping[str, float] = field(default_factory=dict)
    floor: str | None = None
    loss: Literal["huber", "squares"] = "huber"
    num_distinct: Mapping[str, int] = field(default_factory=dict)
    max_ratio: Mapping[str, float] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features it needs."""
        return tuple(dict.fromkeys(term.feature for term in self.terms if term.feature))

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents."""
        return tuple(dict.fromkeys(term.exponent for term in self.terms if isinstance(term, Power)))

    def lower_K(self) -> np.ndarray:
        """Least values of the K parameters; −inf where there is none."""
        return np.array([self.lower.get(name, -np.inf) for name in self.parameters])

    def design(self, feature_R: Mapping[str, np.ndarray]) -> Design:
        """The law at R places, ready to be evaluated many times."""
        size = len(feature_R[self.features[0]])
        powers = [term for term in self.terms if isinstance(term, Power)]
        linears = [term for term in self.terms if isinstance(term, Linear)]
        log_PR = [np.log(term.scale * np.asarray(feature_R[term.feature], np.float64)) for term in powers]
        column_LR = []
        for term in linears:
            values_R = np.asarray(feature_R[term.feature], np.float64) if term.feature else np.ones(size)
            column_LR.append(term.sign * (np.log(values_R) if term.of_log else values_R))
        return Design(
            num_parameters=len(self.parameters),
            amplitude_P=self._index([term.amplitude for term in powers]),
            exponent_P=self._index([term.exponent for term in powers]),
            linear_L=self._index([term.parameter for term in linears]),
            log_PR=np.array(log_PR).reshape(len(powers), size),
            column_LR=np.array(column_LR).reshape(len(linears), size),
        )

    def values(self, value_K: np.ndarray, feature_R: Mapping[str, np.ndarray]) -> np.ndarray:
        """Values at R places, in the target's units."""
        return self.design(feature_R).evaluate(value_K)[0]

    def value_at(self, value_K: np.ndarray, at: Mapping[str, float]) -> float:
        """The value at one place, in the target's units."""
        return float(self.values(value_K, {name: np.array([number]) for name, number in at.items()})[0])

    def residual(self, target_R: np.ndarray, fitted_R: np.ndarray) -> np.ndarray:
        """Targets as seen from fitted ones: in logarithms for `huber`, plain for `squares`."""
        if self.loss == "huber":
            return np.log(np.maximum(target_R, SMALLEST) / np.maximum(fitted_R, SMALLEST))
        return target_R - fitted_R

    def with_residual(self, fitted_R: np.ndarray, residual_R: np.ndarray) -> np.ndarray:
        """Targets from fitted ones and residuals."""
        return fitted_R * np.exp(residual_R) if self.loss == "huber" else fitted_R + residual_R

    def _index(self, names: list[str]) -> np.ndarray:
        return np.array([self.parameters.index(name) for name in names], np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """A law at R places: P power terms and L linear terms of K parameters, as arrays.

    Attributes:
        num_parameters: K.
        amplitude_P: position of each power term's amplitude.
        exponent_P: position of its exponent; terms may share one.
        linear_L: position of each linear term's parameter.
        log_PR: logarithms of the bases of the powers.
        column_LR: what the linear terms multiply, with their signs.
    """

    num_parameters: int
    amplitude_P: np.ndarray
    exponent_P: np.ndarray
    linear_L: np.ndarray
    log_PR: np.ndarray
    column_LR: np.ndarray

    def evaluate(self, value_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (R), and the power terms alone (P × R), which `gradient` needs."""
        amplitude_P1, exponent_P1 = value_K[self.amplitude_P, None], value_K[self.exponent_P, None]
        # Bounded: a line search may try parameters at which the exponential overflows.
        power_PR = np.exp(np.minimum(amplitude_P1 - exponent_P1 * self.log_PR, 60.0))
        return power_PR.sum(axis=0) + value_K[self.linear_L] @ self.column_LR, power_PR

    def gradient(self, power_PR: np.ndarray, slope_R: np.ndarray) -> np.ndarray:
        """Derivatives by the K parameters of something whose derivatives by the R values are these."""
        total_K = np.zeros(self.num_parameters)
        total_K[self.amplitude_P] = power_PR @ slope_R
        np.subtract.at(total_K, self.exponent_P, (power_PR * self.log_PR) @ slope_R)
        total_K[self.linear_L] = self.column_LR @ slope_R
        return total_K

    def centred(self) -> tuple[Design, np.ndarray]:
        """The same with the logarithms' means (P) taken off, which parts amplitudes from exponents."""
        mean_P = self.log_PR.mean(axis=1)
        return replace(self, log_PR=self.log_PR - mean_P[:, None]), mean_P


@dataclass(frozen=True, slots=True)
class Target:
    """What of a score a law describes; `error` and `log_score` turn a score that rises to 1 into what falls to 0.

    Attributes:
        kind: `value`, the number itself; `log`, its logarithm, for perplexities; `error`, 1 − score; `log_score`, −log
            of the score above chance, rescaled to 1 for everything right (arXiv 2512.08894 fits −log Q).
        chance: score of guessing, for `log_score`; nan counts as 0.
    """

    kind: Literal["value", "log", "error", "log_score"] = "value"
    chance: float = float("nan")

    def of(self, score_R: np.ndarray) -> np.ndarray:
        """From scores; nan where a score is not above chance (a perplexity not above 1) and that has no logarithm."""
        if self.kind == "value":
            return np.asarray(score_R, np.float64)
        if self.kind == "log":
            value_R = np.asarray(score_R, np.float64)
            return np.log(np.where(value_R > 1.0, value_R, np.nan))
        if self.kind == "error":
            return 1.0 - np.asarray(score_R, np.float64)
        share_R = (np.asarray(score_R, np.float64) - self._guess) / (1.0 - self._guess)
        return -np.log(np.where(share_R > SMALLEST, share_R, np.nan))

    def back(self, value_R: np.ndarray) -> np.ndarray:
        """To scores; monotone, so quantiles go through."""
        if self.kind == "value":
            return value_R
        if self.kind == "log":
            return np.exp(value_R)
        if self.kind == "error":
            return 1.0 - value_R
        return self._guess + (1.0 - self._guess) * np.exp(-value_R)

    @classmethod
    def of_metric(cls, metric: str) -> Target:
        """What a law of the loss describes: a loss itself, the logarithm of a perplexity, the error of a score."""
        if is_perplexity(metric):
            return cls("log")
        return cls() if is_lower_better(metric) else cls("error")

    @property
    def _guess(self) -> float:
        return self.chance if np.isfinite(self.chance) else 0.0


_FAR = 30.0
"""The OLMo ladder extrapolates 10 × in size and 20 × in tokens (arXiv 2412.04403)."""

LADDER = Law(
    name="ladder",
    formula="L = A / N^alpha + B / D^beta + E",
    source="OLMo ladder, arXiv 2412.04403; Hoffmann et al., arXiv 2203.15556",
    terms=(Power("log_A", "alpha", PARAMETERS), Power("log_B", "beta", TOKENS), Linear("E")),
    parameters=("log_A", "log_B", "alpha", "beta", "E"),
    lower={"log_A": 0.0, "log_B": 0.0, "alpha": 0.0, "beta": 0.0, "E": 0.0},
    floor="E",
    num_distinct={PARAMETERS: 3, TOKENS: 3},
    max_ratio={PARAMETERS: _FAR, TOKENS: _FAR},
)
"""Chinchilla's form, fitted as the ladder does."""

GADRE = Law(
    name="gadre",
    formula="L = A N^-b + B (sqrt(6) D)^-b + E",
    source="Gadre et al., arXiv 2403.08540",
    terms=(Power("log_A", "b", PARAMETERS), Power("log_B", "b", TOKENS, scale=6.0**0.5), Linear("E")),
    parameters=("log_A", "log_B", "b", "E"),
    lower={"b": 0.0, "E": 0.0},
    floor="E",
    loss="squares",
    num_distinct={PARAMETERS: 2, TOKENS: 3},
    max_ratio={PARAMETERS: _FAR, TOKENS: _FAR},
)
"""α N^b + β 6^(b/2) (M N)^b + E with M = D / N and b < 0, written with the sign of b turned."""

ONE_EXPONENT = Law(
    name="one-exponent",
    formula="L = A / N^alpha + B / D^alpha + E",
    source="Gadre et al.'s form, arXiv 2403.08540, fitted as the OLMo ladder fits, arXiv 2412.04403",
    terms=(Power("log_A", "alpha", PARAMETERS), Power("log_B", "alpha", TOKENS), Linear("E")),
    parameters=("log_A", "log_B", "alpha", "E"),
    lower={"alpha": 0.0, "E": 0.0},
    floor="E",
    num_distinct={PARAMETERS: 2, TOKENS: 3},
    max_ratio={PARAMETERS: _FAR, TOKENS: _FAR},
)
"""Huber's loss does not follow single bad runs, and one exponent less is needed from a small table."""

FLOPS_LAW = Law(
    name="flops",
    formula="L = A / C^alpha + E",
    source="OLMo ladder, arXiv 2412.04403",
    terms=(Power("log_A", "alpha", FLOPS), Linear("E")),
    parameters=("log_A", "alpha", "E"),
    lower={"log_A": 0.0, "alpha": 0.0, "E": 0.0},
    floor="E",
    num_distinct={FLOPS: 4},
    max_ratio={FLOPS: _FAR**2},
)
"""For runs of about one ratio of tokens to parameters."""

LLAMA3 = Law(
    name="llama3",
    formula="L = intercept - slope log C",
    source="Llama 3, arXiv 2407.21783",
    terms=(Linear("intercept"), Linear("slope", FLOPS, sign=-1.0, of_log=True)),
    parameters=("intercept", "slope"),
    lower={"slope": 0.0},
    loss="squares",
    num_distinct={FLOPS: 4},
    max_ratio={FLOPS: 1e4},
)
"""The loss of right answers on compute; the paper goes four orders of magnitude up."""

DIRECT_FLOPS = Law(
    name="direct-flops",
    formula="-log Q = A / C^alpha",
    source="Krajewski et al., arXiv 2512.08894",
    terms=(Power("log_A", "alpha", FLOPS),),
    parameters=("log_A", "alpha"),
    lower={"alpha": 0.0},
    num_distinct={FLOPS: 4},
    max_ratio={FLOPS: _FAR**2},
)
"""A score from compute without a loss between; at one ratio of tokens to parameters."""

DIRECT = Law(
    name="direct",
    formula="-log Q = A / N^alpha + B / D^beta",
    source="Krajewski et al., arXiv 2512.08894",
    terms=(Power("log_A", "alpha", PARAMETERS), Power("log_B", "beta", TOKENS)),
    parameters=("log_A", "log_B", "alpha", "beta"),
    lower={"alpha": 0.0, "beta": 0.0},
    num_distinct={PARAMETERS: 3, TOKENS: 3},
    max_ratio={PARAMETERS: _FAR, TOKENS: _FAR},
)
"""A score from size and tokens without a loss between."""

TOKENS_LAW = Law(
    name="tokens",
    formula="L = B / D^beta + E",
    source="Hoffmann et al., arXiv 2203.15556, at one size",
    terms=(Power("log_B", "beta", TOKENS), Linear("E")),
    parameters=("log_B", "beta", "E"),
    lower={"beta": 0.0, "E": 0.0},
    floor="E",
    num_distinct={TOKENS: 5},
    max_ratio={TOKENS: 10.0},
)
"""One run's own future."""

ANNEALING = Law(
    name="annealing",
    formula="L = L0 + A / S1^alpha - C S2",
    source="Tissue et al., arXiv 2408.11029",
    terms=(Power("log_A", "alpha", FORWARD_AREA), Linear("L0"), Linear("C", ANNEALING_AREA, sign=-1.0)),
    parameters=("log_A", "alpha", "L0", "C"),
    lower={"alpha": 0.0, "L0": 0.0, "C": 0.0},
    floor="L0",
    num_distinct={FORWARD_AREA: 5, ANNEALING_AREA: 3},
    max_ratio={FORWARD_AREA: 10.0, ANNEALING_AREA: 10.0},
)
"""Schedule-aware: S1 sums the learning rate, S2 what its fall has brought (`probes.dynamics.annealing`)."""

ANNEALING_SIZES = Law(
    name="annealing-sizes",
    formula="L = L0 + A / S1^alpha + B / N^beta - C S2",
    source="Tissue et al., arXiv 2408.11029, section on model size",
    terms=(*ANNEALING.terms, Power("log_B", "beta", PARAMETERS)),
    parameters=("log_A", "alpha", "L0", "C", "log_B", "beta"),
    lower={**ANNEALING.lower, "beta": 0.0},
    floor="L0",
    num_distinct={**ANNEALING.num_distinct, PARAMETERS: 3},
    max_ratio={**ANNEALING.max_ratio, PARAMETERS: _FAR},
)
"""The same over runs of several sizes."""

LAWS = {
    law.name: law
    for law in (
        LADDER,
        GADRE,
        ONE_EXPONENT,
        FLOPS_LAW,
        LLAMA3,
        DIRECT_FLOPS,
        DIRECT,
        TOKENS_LAW,
        ANNEALING,
        ANNEALING_SIZES,
    )
}
"""All forms by name."""
