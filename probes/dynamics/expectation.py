"""What a run's latest scores should be, from other runs and its own past, and how far off they are.

The scores of the last one to three checkpoints are held against what was to be expected of them before they were known:
one-step-ahead prediction with the whole covariance, so that a deviation of 1 is 1. On Pythia's healthy runs, each
expected from the other sizes, deviations of single tasks have a spread of 0.9 to 1.1 and tasks a correlation of 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.dynamics.noise import judged_value, unjudged_value
from probes.dynamics.surface import Band, Surface, fit_surfaces, relevant
from probes.dynamics.table import CurveTable, Series, TaskCurve

WINDOWS = (1, 2, 3)
"""Checkpoints looked at together: one shows a jump, three a standstill."""

TASK_CORRELATION = 0.12
"""Between the deviations of two tasks of one healthy run (mean over Pythia's six tasks, windows of one to three)."""

_FEWEST_OWN = 6
FEWEST_CHECKPOINTS = _FEWEST_OWN + max(WINDOWS)
"""Checkpoints of its own that a run needs to be held against its own past alone: the last ones are what is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surprise:
    """How far the mean of the last scores of one series is from what was expected.

    Attributes:
        series: which.
        domain: of the task.
        window: how many checkpoints, the latest the last.
        deviation: seen minus expected in standard deviations, more being better.
        confirmed: the same of the second furthest below expectation of the checkpoints; infinite if there is one only.
        seen: mean of the scores, in the metric's unit.
        expected: mean of what was expected, in the same.
    """

    series: Series
    domain: str
    window: int
    deviation: float
    confirmed: float
    seen: float
    expected: float


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is to be expected of one run's series.

    Attributes:
        run: its name.
        parameters: its N; 1 where unknown and nothing else is looked at.
        references: runs it was learnt from; empty if from the run's own past alone.
        surfaces: by series; where no reference has measured a series there is none.
        asked: the series that it was learnt for.
        largest_parameters: of the references.
        smallest_parameters: of the references.
        last_tokens: furthest checkpoint of a reference.
    """

    run: str
    parameters: float
    references: tuple[str, ...]
    surfaces: Mapping[Series, Surface]
    smallest_parameters: float = float("nan")
    largest_parameters: float = float("nan")
    last_tokens: float = float("nan")
    asked: frozenset[Series] = frozenset()

    def supports(self, tokens: float) -> bool:
        """Whether size and tokens are within what the references have seen: a fifth beyond, at most."""
        if not self.references:
            return False
        size = self.smallest_parameters / 1.2 <= self.parameters <= self.largest_parameters * 1.2
        return size and tokens <= 1.2 * self.last_tokens

    def level(self, curve: TaskCurve) -> Surprise | None:
        """The latest score against runs of this size and token count, the run's own past left out."""
        surface = self.surfaces.get(curve.series)
        if surface is None or not self.references:
            return None
        window = curve.where(np.arange(len(curve)) >= len(curve) - 1)
        return _surprise(surface.predict(parameters=self.parameters, tokens_Q=window.tokens_C), window)

    def change(self, curve: TaskCurve, window: int, *, total_tokens: float | None) -> Surprise | None:
        """The last `window` scores against references and the run's own past before them."""
        late = relevant(curve, total_tokens)
        surface = self.surfaces.get(curve.series)
        if surface is None or len(late) <= window:
            return None
        index = np.arange(len(late))
        past, new = late.where(index < len(late) - window), late.where(index >= len(late) - window)
        if self.references:
            surface = surface.with_run(past, parameters=self.parameters)
        return _surprise(surface.predict(parameters=self.parameters, tokens_Q=new.tokens_C, run=curve.run), new)


def expect(table: CurveTable, run: str, series: Sequence[Series], *, references: Sequence[str]) -> Expectation:
    """Learns what is to be expected from references, or, without any that measured the same, from the run's own past.

    Args:
        table: holds run and references.
        run: the run; its own scores are not looked at if there are references.
        series: what it measures.
        references: other runs, with known parameters.
    """
    parameters = table.runs[run].parameters
    known = [name for name in references if table.runs[name].parameters and name != run]
    surfaces = fit_surfaces(table, runs=known, series=series) if known and parameters else {}
    if not surfaces or not parameters:
        own = own_surfaces(table, run, series)
        return Expectation(run, parameters or 1.0, (), own, asked=frozenset(series))
    sizes = [size for name in known if (size := table.runs[name].parameters)]
    return Expectation(
        run,
        parameters,
        tuple(known),
        surfaces,
        min(sizes),
        max(sizes),
        max(table.last_tokens(name) for name in known),
        frozenset(series),
    )


def own_surfaces(table: CurveTable, run: str, series: Sequence[Series]) -> dict[Series, Surface]:
    """Surfaces of a run's own past without its last three checkpoints; none while that is too short."""
    shortened, total = [], table.runs[run].total_tokens
    for one in series:
        curve = table.get(run, one)
        if curve is not None and len(late := relevant(curve, total)) >= FEWEST_CHECKPOINTS:
            shortened.append(late.where(np.arange(len(late)) < len(late) - max(WINDOWS)))
    facts = table.runs[run]
    known = facts if facts.parameters else type(facts)(name=run, parameters=1.0, total_tokens=total)
    return fit_surfaces(CurveTable([known], shortened), runs=[run], series=[curve.series for curve in shortened])


def pooled(surprises: Sequence[Surprise]) -> float:
    """Deviation of several tasks together: their sum over its spread, given what tasks have in common."""
    return over_spread([surprise.deviation for surprise in surprises])


def over_spread(deviations: Sequence[float]) -> float:
    """The sum of several tasks' deviations over the spread of that sum; nan of none."""
    count = len(deviations)
    spread = float(np.sqrt(count + count * (count - 1) * TASK_CORRELATION))
    return sum(deviations) / spread if count else float("nan")


def _surprise(band: Band, window: TaskCurve) -> Surprise:
    off_Q = judged_value(window) - band.mean_Q
    spread = float(np.sqrt(max(band.covariance_QQ.mean(), 1e-18)))
    return Surprise(
        series=window.series,
        domain=window.domain,
        window=len(window),
        deviation=float(off_Q.mean()) / spread,
        confirmed=float(sorted(off_Q / np.maximum(band.score_deviation_Q, 1e-9))[1]) if len(window) > 1 else np.inf,
        seen=float(window.value_C.mean()),
        expected=float(unjudged_value(window, band.mean_Q).mean()),
    )
