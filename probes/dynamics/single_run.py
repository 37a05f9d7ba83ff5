"""One run's own future by a law in tokens, B / D^β + E, when there are no other runs to learn from.

It knows nothing of the learning rate: before a tail it predicts too high a loss. Where learning rates are known,
`probes.dynamics.annealing` does better.
"""

from __future__ import annotations

import numpy as np

from probes.dynamics.fit_law import LawFit, fit_law
from probes.dynamics.law_points import Points
from probes.dynamics.laws import TOKENS, TOKENS_LAW, Target
from probes.dynamics.resample import DEFAULT_DRAWS, resample
from probes.dynamics.table import TaskCurve

SKIP = 0.1
"""Share of the tokens so far that is left out from the start, as long as `FEWEST` checkpoints remain."""
FEWEST = 10
STRETCHES = 10
"""Pieces of a curve that are resampled as wholes: neighbouring checkpoints share their errors."""
WIDENING = 2.5
"""Measured on the OLMo ladder's runs of two to ten times Chinchilla's tokens, all under a cosine: their ends lie within
the intervals of resampled stretches in .39 to .76 of cases, four fifths of them below the prediction."""


def fit_single_run(curve: TaskCurve, *, skip: float = SKIP, draws: int = DEFAULT_DRAWS) -> LawFit:
    """Fits the law in tokens to a curve as far as it has come; deterministic.

    Args:
        curve: a loss, fitted as it is, a perplexity, of which the logarithm is fitted, or a score that rises to 1, of
            which the error is.
        skip: share of the tokens so far to leave out from the start, see `SKIP`.
        draws: resampled fits; 0 gives no intervals.
    """
    late_C = curve.tokens_C >= skip * curve.tokens_C[-1]
    late_C |= np.arange(len(curve)) >= len(curve) - FEWEST
    kept = curve.where(late_C & (curve.tokens_C > 0))
    points = Points(feature_R={TOKENS: kept.tokens_C}, value_R=kept.value_C, group_R=stretches(len(kept)))
    fit = fit_law(TOKENS_LAW, points, target=Target.of_metric(curve.metric))
    return resample(fit, draws=draws, how="residuals", widening=WIDENING)


def stretches(size: int) -> np.ndarray:
    """For each of so many checkpoints in a row the number of its stretch, 0 to `STRETCHES` − 1."""
    return np.arange(size) * STRETCHES // max(size, 1)
