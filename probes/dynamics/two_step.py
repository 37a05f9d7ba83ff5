"""A score at a size and length, in two steps: a law for the task's loss, and a link from that loss to the score.

The OLMo ladder's method (arXiv 2412.04403) with its conventions, Gadre et al.'s and Llama 3's by other laws and links.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.fit_law import DEFAULT_LEVEL, FitRefused, LawFit, Prediction, fit_law, quantiles
from probes.dynamics.hold_out import with_intervals
from probes.dynamics.law_points import LAST_CHECKPOINTS, final_points
from probes.dynamics.laws import LADDER, Law
from probes.dynamics.link import SIGMOID, Link, LinkFit, fit_link, link_points
from probes.dynamics.resample import DEFAULT_DRAWS
from probes.dynamics.table import CurveTable, Series, TaskCurve

_HELD_OUT = 0.25
"""Share of the runs, those with the most FLOPs, that are held out to see what a link is wrong by beyond its points."""
_SHARE_OF_HELD_OUT = 0.75
"""Of that error what intervals add; chosen on the scores of Gadre et al.'s C4 models, of which .74 are held at .80."""


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
        step1: the law's fit, if it has been made already; `law` and `last` are not looked at then.

    Raises:
        ProbeError: no run has both curves.
    """
    pairs = _pairs(table, loss, score, runs)
    if not pairs:
        raise ProbeError(f"No run has both {loss} and {score}. A two-step law needs both of the same checkpoints.")
    if step1 is None:
        step1 = fit_law(law, final_points(table, loss, runs=runs, last=last))
        step1 = with_intervals(step1, draws=draws)
    points = link_points(pairs, skip=link.skip, window=window)
    step2 = fit_link(points, link=link, chance=pairs[0][1].chance, draws=len(step1.draw_BK))
    error = _held_out_error(table, pairs, link) if draws else None
    if error is not None:
        step2 = replace(step2, link_error=_SHARE_OF_HELD_OUT * error)
    return TwoStepFit(step1=step1, step2=step2)


def nearest_loss(table: CurveTable, score: Series, *, losses: Sequence[Series], link: Link = SIGMOID) -> Series | None:
    """Of several losses the one that tells a score best: the link from it errs least at the most FLOPs, held out.

    For scores without a loss of their own task. None if no loss was measured where the score was.
    """
    errors = {}
    for loss in losses:
        if pairs := _pairs(table, loss, score):
            error = _held_out_error(table, pairs, link)
            errors[loss] = float("inf") if error is None else error
    return min(errors, key=errors.__getitem__) if errors else None


def _held_out_error(table: CurveTable, pairs: Sequence[tuple[TaskCurve, TaskCurve]], link: Link) -> float | None:
    """Root mean square of a link's residuals at the runs with the most FLOPs; None where the rest is too little."""
    flops_R = np.array([table.runs[loss.run].flops(loss.tokens_C[-1:])[0] for loss, _ in pairs])
    is_held_R = flops_R >= np.quantile(flops_R, 1 - _HELD_OUT)
    known, held = ([pair for pair, out in zip(pairs, is_held_R, strict=True) if out == side] for side in (False, True))
    if not known or not held:
        return None
    fit = fit_link(link_points(known, skip=link.skip), link=link, chance=pairs[0][1].chance)
    asked = link_points(held, skip=link.skip)
    if not np.isfinite(fit.value_K).all() or not len(asked.loss_P):
        return None
    return float(np.sqrt(np.mean((asked.score_P - fit.score(asked.loss_P)) ** 2)))


def _pairs(
    table: CurveTable, loss: Series, score: Series, runs: Collection[str] | None = None
) -> list[tuple[TaskCurve, TaskCurve]]:
    return [
        (curve, other) for curve in table.of_series(loss, runs) if (other := table.get(curve.run, score)) is not None
    ]
