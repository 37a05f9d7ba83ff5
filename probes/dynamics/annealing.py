"""Schedule-aware extrapolation: how far a run's loss has come by its learning rates, and what their fall still brings.

Tissue et al., arXiv 2408.11029: L = L0 + A / S1^α − C · S2, with S1 the sum of the learning rates so far and S2 what
their fall has brought. Fitted to curves under one schedule it predicts another: a longer cosine, or the tail of a WSD
run. A law in tokens alone takes the tail for progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import signal

from pretrain.errors import ProbeError
from probes.dynamics.fit_law import DEFAULT_LEVEL, LawFit, Prediction, fit_law
from probes.dynamics.law_points import Points
from probes.dynamics.laws import ANNEALING, ANNEALING_AREA, ANNEALING_SIZES, FORWARD_AREA, PARAMETERS
from probes.dynamics.resample import DEFAULT_DRAWS, resample
from probes.dynamics.single_run import STRETCHES, stretches
from probes.dynamics.table import TaskCurve

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig

MEMORY = 0.999
"""λ of the paper: what a fall of the learning rate brings grows over about 1 / (1 − λ) steps."""
SKIP = 0.1
"""Share of the first curve's steps that is left out of each: warm-up and what follows it obey no power law."""
WIDENING = 1.5
"""Measured on the OLMo ladder: resampled stretches would have to be 1.1 to 1.7 times as wide for a run's own end (from
30% to 75% of it, with and without shorter runs), 2.9 times for runs five times as long as the longest seen."""
LAW_ERROR = 0.004
"""Of the loss. Under another schedule than the fitted one the law is .02% to .7% off where noise is .05%: measured once
on the curves that came with arXiv 2503.12811 (25M to 400M; from a cosine to a longer one, to WSD, to two levels)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledCurve:
    """A loss curve and the learning rates behind it.

    Attributes:
        curve: with steps.
        rate_S: learning rate of each optimizer step from the first on, at least up to the curve's last step.
        parameters: N, for a law over sizes; None otherwise.
    """

    curve: TaskCurve
    rate_S: np.ndarray
    parameters: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnealingFit:
    """A fitted law of the learning rate.

    Attributes:
        fit: the law.
        memory: λ.
    """

    fit: LawFit
    memory: float

    @property
    def refused(self) -> str | None:
        """Why nothing may be predicted; None for a good fit."""
        return self.fit.refused

    def place(self, rate_S: np.ndarray, step: int, *, parameters: float | None = None) -> dict[str, float]:
        """The law's features after so many steps of these learning rates."""
        forward_S, annealing_S = annealing_areas(rate_S[:step], memory=self.memory)
        at = {FORWARD_AREA: float(forward_S[-1]), ANNEALING_AREA: float(annealing_S[-1])}
        return at if parameters is None else at | {PARAMETERS: parameters}

    def predict(
        self, rate_S: np.ndarray, step: int, *, parameters: float | None = None, level: float = DEFAULT_LEVEL
    ) -> Prediction:
        """The loss after so many steps of a schedule.

        Args:
            rate_S: learning rate of each step from the first on.
            step: steps done, at most as many as there are rates.
            parameters: N, for a law over sizes.
            level: share of outcomes that the interval is to hold.

        Raises:
            FitRefused: the fit is degenerate, or the place is too far from the points.
        """
        return self.fit.predict(self.place(rate_S, step, parameters=parameters), level=level)


def annealing_areas(rate_S: np.ndarray, *, memory: float = MEMORY) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 after each of S steps.

    S1 sums the learning rates. S2 sums, over the steps, what is left of all falls before: a fall by Δ counts Δ, then
    λ Δ, λ² Δ, … in the steps that follow. Falls count from the first maximum on: the warm-up is none.

    Args:
        rate_S: learning rate of each step.
        memory: λ, from 0 to 1.
    """
    fall_S = np.zeros(len(rate_S))
    fall_S[1:] = rate_S[:-1] - rate_S[1:]
    fall_S[: int(np.argmax(rate_S)) + 1] = 0.0
    return np.cumsum(rate_S), np.cumsum(signal.lfilter([1.0], [1.0, -memory], fall_S))


def rates_between(step_C: np.ndarray, rate_C: np.ndarray, *, num_steps: int | None = None) -> np.ndarray:
    """Learning rates of all steps from those recorded at some: straight lines between, from 0 at step 0.

    Args:
        step_C: recorded steps, rising.
        rate_C: learning rates at them.
        num_steps: steps wanted, the last rate held; up to the last record unless told.
    """
    known = (np.append(0, step_C), np.append(0.0, rate_C)) if step_C[0] > 0 else (step_C, rate_C)
    return np.interp(np.arange(1, (num_steps or int(step_C[-1])) + 1), *known)


def planned_rates(config: RunConfig) -> np.ndarray:
    """Learning rates of all steps of a run as its configuration plans them."""
    from pretrain.schedule import learning_rate

    sizes = config.batch_sizes
    steps, total_tokens = range(config.total_steps), config.total_tokens
    return np.array(
        [
            learning_rate(config.schedule, sizes.tokens(step), total_tokens=total_tokens, batch_sizes=sizes)
            for step in steps
        ]
    )


def fit_annealing(
    curves: Sequence[ScheduledCurve],
    *,
    memories: Sequence[float] = (MEMORY,),
    skip: float = SKIP,
    draws: int = DEFAULT_DRAWS,
) -> AnnealingFit:
    """Fits the law to all curves together; deterministic.

    Args:
        curves: of one size, or all with `parameters`: then the law has a term for size.
        memories: values of λ to try; the best fit is taken.
        skip: share of the shortest curve's steps that is left out from the start of each.
        draws: resampled fits; 0 gives no intervals.

    Raises:
        ProbeError: a curve lacks steps, or reaches beyond its learning rates.
    """
    sized = [curve.parameters for curve in curves if curve.parameters is not None]
    law = ANNEALING_SIZES if len(sized) == len(curves) and len(set(sized)) > 1 else ANNEALING
    fits = [(fit_law(law, annealing_points(curves, memory=memory, skip=skip)), memory) for memory in memories]
    fit, memory = min(fits, key=lambda pair: pair[0].objective if np.isfinite(pair[0].objective) else np.inf)
    fit = replace(resample(fit, draws=draws, how="residuals", widening=WIDENING), law_error=LAW_ERROR)
    return AnnealingFit(fit=fit, memory=memory)


def annealing_points(curves: Sequence[ScheduledCurve], *, memory: float = MEMORY, skip: float = SKIP) -> Points:
    """The features of the law at every checkpoint of all curves, resampled in stretches.

    Raises:
        ProbeError: a curve lacks steps, or reaches beyond its learning rates.
    """
    first = skip * min(int(scheduled.curve.step_C[-1]) for scheduled in curves)
    columns: dict[str, list[np.ndarray]] = {FORWARD_AREA: [], ANNEALING_AREA: [], PARAMETERS: []}
    values, groups = [], []
    for number, scheduled in enumerate(curves):
        curve, rate_S = scheduled.curve, scheduled.rate_S
        if (curve.step_C < 0).any() or curve.step_C[-1] > len(rate_S):
            raise ProbeError(
                f"{curve.run}: the learning rates of {len(rate_S)} steps are known, the curve of {curve.series} "
                f"reaches to step {curve.step_C[-1]}. The law of the learning rate needs steps, and a rate for each."
            )
        forward_S, annealing_S = annealing_areas(rate_S, memory=memory)
        # A schedule's first rate is 0, and a power of that is infinite.
        curve = curve.since_step(max(int(np.ceil(first)), 1 + int(np.argmax(forward_S > 0))))
        columns[FORWARD_AREA].append(forward_S[curve.step_C - 1])
        columns[ANNEALING_AREA].append(annealing_S[curve.step_C - 1])
        columns[PARAMETERS].append(np.full(len(curve), scheduled.parameters or np.nan))
        values.append(curve.value_C)
        groups.append(number * STRETCHES + stretches(len(curve)))
    return Points(
        feature_R={name: np.concatenate(parts) for name, parts in columns.items()},
        value_R=np.concatenate(values),
        group_R=np.concatenate(groups),
    )
