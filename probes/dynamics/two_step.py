"""A score at a size and length, in two steps: a law for the task's loss, and a link from that loss to the score.

The OLMo ladder's method (arXiv 2412.04403) with its conventions, Gadre et al.'s and Llama 3's by other laws and links.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.fit_law import DEFAULT_LEVEL, FitRefused, LawFit, Prediction, fit_law, quantiles
from probes.dynamics.law_points import LAST_CHECKPOINTS, final_points
from probes.dynamics.laws import LADDER, Law
from probes.dynamics.link import SIGMOID, Link, LinkFit, fit_link, link_points
from probes.dynamics.resample import DEFAULT_DRAWS, WIDENING, resample
from probes.dynamics.table import CurveTable, Series


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStepFit:
    """A fitted law and a fitted link.

    Attributes:
        step1: loss from size and tokens, or from FLOPs.
        step2: score from loss.
    """

    step1: LawFit
    step2: LinkFit

    @property
    def refused(self) -> str | None:
        """Why nothing may be predicted: of the law first, then of the link; None for good fits."""
        return self.step1.refused or self.step2.refused

    def why_not(self, at: Mapping[str, float]) -> str | None:
        """Why nothing may be predicted there; None if it may."""
        reason = self.step1.why_not(at) or self.step2.refused
        if reason is None and not 0.0 <= self.score(at) <= 1.0:
            reason = f"the link gives a score of {self.score(at):.3f}, beyond 0 or 1: the loss is far below the fitted."
        return reason

    def score(self, at: Mapping[str, float]) -> float:
        """The score there by the two fits, refused or not."""
        return float(self.step2.score(np.array([self.step1.law.value_at(self.step1.value_K, at)]))[0])

    def draws_at(self, at: Mapping[str, float]) -> np.ndarray:
        """Scores there by the resampled fits, noise and all, moved apart as `LawFit.widening` has it for the loss."""
        loss_B = self.step1.draws_at(at, noise=False)
        return self.step2.draws_at(loss_B)

    def predict(self, at: Mapping[str, float], *, level: float = DEFAULT_LEVEL) -> Prediction:
        """The score at one place.

        Args:
            at: a number for each of the law's features (`probes.dynamics.law_points.place`).
            level: share of outcomes that the interval is to hold.

        Raises:
            FitRefused: one of the fits is degenerate, or the place is too far from the runs.
        """
        if reason := self.why_not(at):
            raise FitRefused(reason, of="The two-step fit")
        low, high = quantiles(self.draws_at(at), level)
        return Prediction(value=self.score(at), low=low, high=high, level=level)


def fit_two_step(
    table: CurveTable,
    *,
    loss: Series,
    score: Series,
    runs: Collection[str] | None = None,
    law: Law = LADDER,
    link: Link = SIGMOID,
    last: int = LAST_CHECKPOINTS,
    window: int = 5,
    draws: int = DEFAULT_DRAWS,
    widening: float = WIDENING,
    step1: LawFit | None = None,
) -> TwoStepFit:
    """Fits both steps; deterministic.

    Args:
        table: finished runs of several sizes and lengths.
        loss: the task's loss, such as bits per byte of the right answers.
        score: its score.
        runs: of these alone.
        law: for the loss.
        link: from loss to score.
        last: checkpoints in the mean that the law is fitted to.
        window: of the moving average that the link is fitted to.
        draws: resampled fits; 0 gives no intervals.
        widening: see `LawFit`.
        step1: the law's fit, if it has been made already; `law`, `last` and `widening` are not looked at then.

    Raises:
        ProbeError: no run has both curves.
    """
    pairs = [
        (curve, other) for curve in table.of_series(loss, runs) if (other := table.get(curve.run, score)) is not None
    ]
    if not pairs:
        raise ProbeError(f"No run has both {loss} and {score}. A two-step law needs both of the same checkpoints.")
    if step1 is None:
        step1 = fit_law(law, final_points(table, loss, runs=runs, last=last))
        step1 = resample(step1, draws=draws, widening=widening)
    points = link_points(pairs, skip=link.skip, window=window)
    step2 = fit_link(points, link=link, chance=pairs[0][1].chance, draws=len(step1.draw_BK))
    return TwoStepFit(step1=step1, step2=step2)
