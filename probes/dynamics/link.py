"""From a task's loss to its score: the second step of two-step scaling laws.

A link is fitted to all checkpoints of all runs, since a loss means the same score at every size. What it is fed with a
law's loss is in `probes.dynamics.two_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from probes.dynamics.resample import group_weights
from probes.dynamics.table import TaskCurve

MIN_CORRELATION = 0.5
"""Spearman's ρ of score and falling loss below which the loss does not carry the score."""
MIN_ABOVE_CHANCE = 3.0
"""Standard deviations of the residuals by which the best scores must be above chance."""
_SPARE_POINTS = 4
"""So many more points than parameters a link needs."""
_MOST_RESAMPLED = 300
"""Points of a resampled fit: each is a mean over five checkpoints, so most say what their neighbours do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A falling function from loss to score.

    Attributes:
        name: as the command line calls it.
        formula: for people.
        source: paper.
        parameters: names.
        function: score (P) and its derivatives (P × K) from loss (P) and parameters (K).
        start: first parameters, given the score of guessing.
        lower: least parameters.
        upper: largest parameters.
        ideal: whether (loss 0, score 1) is one of the points.
        skip: share of each run's checkpoints to leave out from the start.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[str, ...]
    function: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    start: Callable[[float], Sequence[float]]
    lower: Sequence[float]
    upper: Sequence[float]
    ideal: bool
    skip: float


def _sigmoid(loss_P: np.ndarray, value_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, x0, k, b = value_K
    share_P = special.expit(k * (loss_P - x0))
    slope_P = a * share_P * (1 - share_P)
    return a * share_P + b, np.stack([share_P, -k * slope_P, (loss_P - x0) * slope_P, np.ones_like(loss_P)], axis=1)


def _soft_log(loss_P: np.ndarray, value_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, x0, k = value_K
    z_P = k * (loss_P - x0)
    soft_P, slope_P = np.logaddexp(0.0, z_P), a * special.expit(z_P)
    return 1 + a * soft_P, np.stack([soft_P, -k * slope_P, (loss_P - x0) * slope_P], axis=1)


def _exponential(loss_P: np.ndarray, value_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ceiling, k, gamma = value_K
    power_P = np.exp(-gamma * loss_P)
    return 1 - ceiling + k * power_P, np.stack([-np.ones_like(loss_P), power_P, -k * loss_P * power_P], axis=1)


SIGMOID = Link(
    name="sigmoid",
    formula="score = a / (1 + exp(-k (L - x0))) + b",
    source="OLMo ladder, arXiv 2412.04403; Llama 3, arXiv 2407.21783",
    parameters=("a", "x0", "k", "b"),
    function=_sigmoid,
    start=lambda chance: (chance - 1.0, 0.9, 3.0, 1.0),
    lower=(-1.0, 0.0, 0.0, 0.0),
    upper=(0.0, np.inf, np.inf, 1.0),
    ideal=True,
    skip=0.1,
)
SOFT_LOG = Link(
    name="soft-log",
    formula="score = 1 - a log(1 - sigmoid(k (L - x0)))",
    source="OLMo ladder, arXiv 2412.04403, for the cross entropy over the choices",
    parameters=("a", "x0", "k"),
    function=_soft_log,
    start=lambda _: (-0.1, 0.9, 3.0),
    lower=(-np.inf, 0.0, 0.0),
    upper=(0.0, np.inf, np.inf),
    ideal=False,
    skip=0.5,
)
EXPONENTIAL = Link(
    name="exponential",
    formula="1 - score = eps - k exp(-gamma L)",
    source="Gadre et al., arXiv 2403.08540",
    parameters=("eps", "k", "gamma"),
    function=_exponential,
    start=lambda chance: (1.0 - chance, 1.0, 1.0),
    lower=(0.0, 0.0, 0.0),
    upper=(1.0, np.inf, np.inf),
    ideal=False,
    skip=0.1,
)
LINKS = {link.name: link for link in (SIGMOID, SOFT_LOG, EXPONENTIAL)}
"""All links by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPoints:
    """Losses and scores of the same checkpoints, P of them.

    Attributes:
        loss_P: smoothed.
        score_P: smoothed likewise.
        group_P: int, which run.
    """

    loss_P: np.ndarray
    score_P: np.ndarray
    group_P: np.ndarray

    def thinned(self, most: int) -> LinkPoints:
        """Every so-manieth point, so that no more than about `most` remain."""
        each = slice(None, None, -(-len(self.loss_P) // most))
        return LinkPoints(loss_P=self.loss_P[each], score_P=self.score_P[each], group_P=self.group_P[each])


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkFit:
    """A fitted link.

    Attributes:
        link: the form.
        value_K: parameters, as `link.parameters` names them.
        residual_P: points minus fit.
        refused: why no score may be told from it; None for a good fit.
        draw_BK: parameters of B resampled fits; empty without.
        link_error: standard deviation, in the score's unit, of what the form itself is wrong by beyond its points.
    """

    link: Link
    value_K: np.ndarray
    residual_P: np.ndarray
    refused: str | None
    draw_BK: np.ndarray
    link_error: float = 0.0

    def score(self, loss_P: np.ndarray) -> np.ndarray:
        """Scores of losses; a refused fit does not keep from it."""
        return self.link.function(np.asarray(loss_P, np.float64), self.value_K)[0]

    def draws_at(self, loss_B: np.ndarray, *, seed: int = 0) -> np.ndarray:
        """The score of one loss by each resampled fit, with a residual and `link_error`; B losses for B fits."""
        score_B = np.array(
            [
                self.link.function(np.array([loss]), value_K)[0][0]
                for loss, value_K in zip(loss_B, self.draw_BK, strict=True)
            ]
        )
        generator = np.random.default_rng(seed)
        noise_B = generator.choice(self.residual_P, len(score_B)) if len(score_B) else np.zeros(0)
        return score_B + noise_B + self.link_error * generator.standard_normal(len(score_B))


def moving_average(value_C: np.ndarray, window: int) -> np.ndarray:
    """Means of up to `window` values, each and those before it; the first are means of fewer, as the ladder has it."""
    total_C = np.cumsum(np.asarray(value_C, np.float64))
    count_C = np.minimum(np.arange(1, len(total_C) + 1), window)
    total_C[window:] = total_C[window:] - total_C[:-window]
    return total_C / count_C


def link_points(
    pairs: Sequence[tuple[TaskCurve, TaskCurve]], *, skip: float = SIGMOID.skip, window: int = 5
) -> LinkPoints:
    """Checkpoints that two curves of a run have in common, without the first, smoothed, over all runs.

    Args:
        pairs: a loss curve and a score curve for each run.
        skip: share of a run's checkpoints to leave out from the start, rounded up; of a run of which only the end is
            known, that is kept.
        window: of the moving average.
    """
    losses, scores, groups = [], [], []
    for group, (loss, score) in enumerate(pairs):
        _, own, other = np.intersect1d(loss.tokens_C, score.tokens_C, assume_unique=True, return_indices=True)
        first = int(np.ceil(skip * len(own))) if len(own) > 1 else 0
        losses.append(moving_average(loss.value_C[own][first:], window))
        scores.append(moving_average(score.value_C[other][first:], window))
        groups.append(np.full(len(own) - first, group))
    return LinkPoints(loss_P=np.concatenate(losses), score_P=np.concatenate(scores), group_P=np.concatenate(groups))


def fit_link(points: LinkPoints, *, link: Link = SIGMOID, chance: float = float("nan"), draws: int = 0) -> LinkFit:
    """Least squares within bounds, as the ladder does; whole runs are resampled.

    Args:
        points: of `link_points`.
        link: the form.
        chance: score of guessing; where the fit starts, and what the scores must have left.
        draws: resampled fits.

    Returns:
        The fit, `refused` where it means nothing. Too few points give a fit of nan.
    """
    count, needed = len(points.loss_P), len(link.parameters) + _SPARE_POINTS
    if count < needed:
        return LinkFit(
            link=link,
            value_K=np.full(len(link.parameters), np.nan),
            residual_P=np.full(count, np.nan),
            refused=f"{count} checkpoints have both a loss and a score; the link {link.name} needs at least {needed}.",
            draw_BK=np.zeros((0, len(link.parameters))),
        )
    guess = chance if np.isfinite(chance) else 0.0
    value_K = _least_squares(link, points, np.ones(len(points.loss_P)), start_K=np.array(link.start(guess)))
    fit = LinkFit(
        link=link,
        value_K=value_K,
        residual_P=points.score_P - link.function(points.loss_P, value_K)[0],
        refused=None,
        draw_BK=np.zeros((0, len(value_K))),
    )
    generator = np.random.default_rng(1)
    some = points.thinned(_MOST_RESAMPLED)
    drawn = [_least_squares(link, some, group_weights(some.group_P, generator), start_K=value_K) for _ in range(draws)]
    reason = _why_not(points, fit, guess)
    return replace(fit, refused=reason, draw_BK=np.array(drawn).reshape(draws, len(value_K)))


def _least_squares(link: Link, points: LinkPoints, weight_P: np.ndarray, *, start_K: np.ndarray) -> np.ndarray:
    loss_P, score_P, root_P = points.loss_P, points.score_P, np.sqrt(weight_P)
    if link.ideal:
        loss_P, score_P, root_P = np.append(loss_P, 0.0), np.append(score_P, 1.0), np.append(root_P, 1.0)

    def residual(value_K: np.ndarray) -> np.ndarray:
        return root_P * (link.function(loss_P, value_K)[0] - score_P)

    def slope(value_K: np.ndarray) -> np.ndarray:
        return root_P[:, None] * link.function(loss_P, value_K)[1]

    bounds = (np.array(link.lower), np.array(link.upper))
    # A start on a bound would be moved far inside.
    inside_K = np.clip(start_K, np.nextafter(bounds[0], np.inf), np.nextafter(bounds[1], -np.inf))
    return np.asarray(optimize.least_squares(residual, inside_K, jac=slope, bounds=bounds, max_nfev=500).x)


def _why_not(points: LinkPoints, fit: LinkFit, guess: float) -> str | None:
    if np.ptp(points.score_P) == 0:
        return "the score never changes."
    correlation = -float(stats.spearmanr(points.loss_P, points.score_P).statistic)
    if correlation < MIN_CORRELATION:
        return (
            f"the score hardly follows the loss: rank correlation with falling loss {correlation:.2f}, "
            f"below {MIN_CORRELATION:g}."
        )
    spread = float(np.std(fit.residual_P))
    best = float(np.quantile(points.score_P, 0.9))
    if best - guess < MIN_ABOVE_CHANCE * spread:
        return f"the score has not left chance: its best tenth begins at {best:.3f}, guessing scores {guess:.3f}."
    return None
