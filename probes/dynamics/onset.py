"""When an ability sets in and when it is saturated: change points of a curve in log tokens, with intervals.

A curve is fitted by a level, a rise and a second, lesser slope, joined at two change points, or by fewer pieces where
the scores do not ask for more. Who comes first, and whether runs agree on it, is for `probes.dynamics.arising`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from probes.dynamics.noise import STDERR_SHARE, judged_value, log_tokens, noise_of
from probes.dynamics.table import CurveTable, Series, TaskCurve

AT, BEFORE, NOT_YET, NEVER = "at", "before", "not yet", "never"
"""A change point lies within the curve; before its first checkpoint; has not been reached by a run that goes on; was
not reached by a run that is finished."""

_LEAST_CHECKPOINTS = 6
_CANDIDATES = 96
_ABOVE_CHANCE = 3.0
_LEAST_RISE = 5.0
_SATURATED_SLOPE = 0.25
_SATURATED_REST = 0.1
_LEAST_SATURATION = float(np.log(2.0))
_WINDOW = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangePoint:
    """Where a curve changes, or why there is no such place.

    Attributes:
        state: `AT`, `BEFORE`, `NOT_YET` or `NEVER`.
        tokens: where; nan unless `AT`.
        low: lower end of its interval, 0 for before the first checkpoint; nan unless `AT`.
        high: upper end; inf for not reached.
        drawn_B: its place in each draw of the bootstrap, in tokens; 0 for before the first checkpoint, inf for not
            reached.
    """

    state: str
    tokens: float
    low: float
    high: float
    drawn_B: np.ndarray

    def __str__(self) -> str:
        return f"{self.tokens:.3g} [{self.low:.3g}, {self.high:.3g}] tokens" if self.state == AT else self.state


@dataclass(frozen=True, kw_only=True, slots=True)
class Arising:
    """Onset and saturation of one curve.

    Attributes:
        run: name of the run.
        series: what was measured.
        domain: its domain.
        onset: where the rise begins.
        saturation: where the rise ends: the slope beyond is below a quarter of the rise's, and less than a tenth of the
            whole rise has come there, over twice the tokens or more.
        slope: of the rise, per e-fold of tokens; nan without a rise.
        late_slope: beyond the second change point, not above `slope`; nan without one.
        rise: of the fit from its start to its highest, in units of checkpoint noise.
        reason: why there is no onset, in words; empty where there is one.
    """

    run: str
    series: Series
    domain: str
    onset: ChangePoint
    saturation: ChangePoint
    slope: float
    late_slope: float
    rise: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Pieces:
    """All fits of a level and one or two slopes to C checkpoints: K pairs of change points.

    The columns of a fit are made orthogonal once, so that any scores are fitted by two products.
    """

    onset_K: np.ndarray
    bend_K: np.ndarray  # inf: one slope
    first_KC: np.ndarray  # unit vector of the rise, without the level
    second_KC: np.ndarray  # unit vector of the bend, without level and rise; 0 for one slope
    scale_K: np.ndarray  # rise = first / scale − second · overlap
    overlap_K: np.ndarray
    bend_scale_K: np.ndarray


@dataclass(frozen=True, slots=True)
class _Fit:
    """The best fit to each of B curves."""

    onset_B: np.ndarray  # log tokens; inf for a level only
    bend_B: np.ndarray  # log tokens; inf for no bend
    slope_B: np.ndarray
    late_slope_B: np.ndarray
    fitted_BC: np.ndarray
    residual_B: np.ndarray  # sum of squares
    pieces_B: np.ndarray  # 1, 2 or 3


def arise(table: CurveTable, curve: TaskCurve, *, draws: int = 200, level: float = 0.8, seed: int = 0) -> Arising:
    """Onset and saturation of a curve, from its first checkpoint on.

    Least squares over a grid of change points; the number of pieces by BIC with the checkpoint noise as known variance.
    Scores below chance count as chance: on the way up to it nothing is learnt. A rise counts as an onset if it is five
    times the noise and leads three standard errors above chance; if a trained model starts there, it was before.
    Intervals are of noise drawn about the fit, with the deviation of checkpoints or of what the fit leaves over,
    whichever is more; and no change point is taken to be known better than to a gap between checkpoints.

    Args:
        table: says whether the run is finished, which tells `NEVER` from `NOT_YET`.
        curve: of the table, or a mean of some (`domain_curve`).
        draws: of the bootstrap.
        level: of the intervals.
        seed: of the draws.
    """
    missing = NEVER if curve.run in table.runs and table.is_finished(curve.run) else NOT_YET
    if len(curve) < _LEAST_CHECKPOINTS:
        return _none(curve, NOT_YET, f"{len(curve)} checkpoints, {_LEAST_CHECKPOINTS} needed", draws)
    noise = noise_of(curve)
    value_C = judged_value(curve)
    value_C = np.maximum(value_C, curve.chance) if np.isfinite(curve.chance) else value_C
    position_C = log_tokens(curve.tokens_C)
    pieces = _all_pieces(position_C.tobytes())
    fit = _best(pieces, value_C[None, :], noise)
    rise = float(fit.fitted_BC[0].max() - fit.fitted_BC[0, 0]) / noise
    reason = _no_onset(curve, fit, rise, noise)
    if reason:
        return _none(curve, missing, reason, draws, rise=rise)
    freedom = max(len(curve) - 2 * int(fit.pieces_B[0]) + 1, 1)
    deviation = max(noise, float(np.sqrt(fit.residual_B[0] / freedom)))
    rng = np.random.default_rng(seed)
    drawn = _best(pieces, fit.fitted_BC + deviation * rng.normal(size=(draws, len(curve))), deviation)
    if curve.tokens_C[0] > 0 and _is_above_chance(curve, float(fit.fitted_BC[0, 0]), noise, slice(0, _WINDOW)):
        # What is known at the first checkpoint was learnt before it, unless that is untrained.
        fit, drawn = (replace(one, onset_B=np.full(len(one.onset_B), position_C[0])) for one in (fit, drawn))
    places = [(fit.onset_B, drawn.onset_B), (_ends(fit, position_C[-1]), _ends(drawn, position_C[-1]))]
    onset, saturation = (
        _change_point(float(place_B[0]), _blurred(drawn_B, position_C, rng), position_C, missing, level)
        for place_B, drawn_B in places
    )
    return Arising(
        run=curve.run,
        series=curve.series,
        domain=curve.domain,
        onset=onset,
        saturation=saturation,
        slope=float(fit.slope_B[0]),
        late_slope=float(fit.late_slope_B[0]),
        rise=rise,
        reason="",
    )


def domain_curve(curves: Sequence[TaskCurve], domain: str) -> TaskCurve | None:
    """The mean of a run's curves of one domain: above chance where chance is known.

    Tasks count by their items (inverse variances) where standard errors are known, so that a task of a hundred items
    does not drown one of thousands in its noise; else equally.

    Args:
        curves: of one run; one metric a task is taken, an accuracy before others, at the checkpoints all have.
        domain: whose.

    Returns:
        A curve of the task `mean`, its standard error that of independent tasks; None if the domain has no curve or its
        curves no common checkpoint.
    """
    chosen: dict[str, TaskCurve] = {}
    for curve in curves:
        known = chosen.get(curve.task)
        if curve.domain == domain and (known is None or _rank(curve) < _rank(known)):
            chosen[curve.task] = curve
    # Scores above chance and bits per byte have no common unit.
    with_chance = [curve for curve in chosen.values() if np.isfinite(curve.chance)]
    parts = [curve.rescaled() for curve in with_chance] or list(chosen.values())
    if not parts:
        return None
    tokens_C = parts[0].tokens_C
    for part in parts[1:]:
        tokens_C = np.intersect1d(tokens_C, part.tokens_C)
    if not len(tokens_C):
        return None
    rows = [np.searchsorted(part.tokens_C, tokens_C) for part in parts]
    stderr_PC = np.array([part.stderr_C[row] for part, row in zip(parts, rows, strict=True)])
    # The largest: at a score of 0 it is 0.
    variance_P = stderr_PC.max(axis=1) ** 2
    weight_P = 1.0 / variance_P if np.all(variance_P > 0) else np.ones(len(parts))
    weight_P /= weight_P.sum()
    return TaskCurve(
        run=parts[0].run,
        task="mean",
        domain=domain,
        metric="rescaled" if with_chance else parts[0].metric,
        num_fewshot=parts[0].num_fewshot,
        step_C=parts[0].step_C[rows[0]],
        tokens_C=tokens_C,
        value_C=weight_P @ np.array([part.value_C[row] for part, row in zip(parts, rows, strict=True)]),
        stderr_C=np.sqrt(weight_P**2 @ stderr_PC**2),
        chance=0.0 if with_chance else float("nan"),
    )


def _rank(curve: TaskCurve) -> tuple[bool, str, int]:
    return not np.isfinite(curve.chance), curve.metric, curve.num_fewshot


def _no_onset(curve: TaskCurve, fit: _Fit, rise: float, noise: float) -> str:
    """Why a curve has not risen; empty if it has."""
    if fit.pieces_B[0] == 1 or fit.slope_B[0] <= 0:
        return "one level fits all scores"
    if rise < _LEAST_RISE:
        return f"rises by {rise:.1f} times its noise, {_LEAST_RISE:g} needed"
    if np.isfinite(curve.chance):
        window_W = np.convolve(curve.value_C, np.full(_WINDOW, 1 / _WINDOW), "valid")
        best = int(np.argmax(window_W))
        if not _is_above_chance(curve, float(window_W[best]), noise, slice(best, best + _WINDOW)):
            return f"at best {window_W[best]:.3f}, not {_ABOVE_CHANCE:g} standard errors above chance"
    return ""


def _is_above_chance(curve: TaskCurve, value: float, noise: float, where: slice) -> bool:
    """Whether a score is three standard errors above chance; False where guessing means nothing."""
    stderr = float(np.mean(curve.stderr_C[where]))
    # Of no right answer the error is 0, but not that of the fit.
    stderr = max(stderr, noise) if np.isfinite(stderr) else noise / STDERR_SHARE
    return value - curve.chance >= _ABOVE_CHANCE * stderr


def _none(curve: TaskCurve, state: str, reason: str, draws: int, *, rise: float = float("nan")) -> Arising:
    nothing = ChangePoint(
        state=state, tokens=float("nan"), low=float("nan"), high=float("nan"), drawn_B=np.full(draws, np.inf)
    )
    return Arising(
        run=curve.run,
        series=curve.series,
        domain=curve.domain,
        onset=nothing,
        saturation=nothing,
        slope=float("nan"),
        late_slope=float("nan"),
        rise=rise,
        reason=reason,
    )


def _change_point(place: float, drawn_B: np.ndarray, position_C: np.ndarray, missing: str, level: float) -> ChangePoint:
    """A change point in tokens from log tokens; at or before the first checkpoint it is only known to be before."""
    first, last = float(position_C[0]), float(position_C[-1])
    tokens_B = np.where(drawn_B <= first, 0.0, np.where(drawn_B >= last, np.inf, np.exp(np.minimum(drawn_B, last))))
    if first < place < last:
        low, high = np.quantile(tokens_B, [0.5 - level / 2, 0.5 + level / 2], method="nearest")
        return ChangePoint(state=AT, tokens=float(np.exp(place)), low=float(low), high=float(high), drawn_B=tokens_B)
    state = BEFORE if place <= first else missing
    return ChangePoint(state=state, tokens=float("nan"), low=float("nan"), high=float("nan"), drawn_B=tokens_B)


def _blurred(place_B: np.ndarray, position_C: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places within the curve moved by up to half the gap between the checkpoints about them, either way."""
    inside_B = (place_B > position_C[0]) & (place_B < position_C[-1])
    right_B = np.clip(np.searchsorted(position_C, place_B), 1, len(position_C) - 1)
    gap_B = position_C[right_B] - position_C[right_B - 1]
    moved_B = np.where(inside_B, place_B, 0.0) + gap_B * rng.uniform(-0.5, 0.5, len(place_B))
    return np.where(inside_B, moved_B, place_B)


def _ends(fit: _Fit, last: float) -> np.ndarray:
    """Where the rise of each fit is over, in log tokens; inf where it goes on."""
    has_bend_B = np.isfinite(fit.bend_B)
    bend_B = np.where(has_bend_B, fit.bend_B, last)
    rest_B = np.where(has_bend_B, fit.late_slope_B, np.inf) * np.maximum(last - bend_B, 1e-9)
    risen_B = np.where(np.isfinite(fit.onset_B), fit.slope_B * (bend_B - np.minimum(fit.onset_B, bend_B)), 0.0)
    is_over_B = (
        (last - bend_B >= _LEAST_SATURATION)
        & (np.nan_to_num(fit.late_slope_B, nan=np.inf) < _SATURATED_SLOPE * fit.slope_B)
        & (rest_B < _SATURATED_REST * (risen_B + rest_B))
    )
    # A fall beyond the bend is no rest of the rise.
    is_over_B |= has_bend_B & (fit.late_slope_B <= 0) & (last - bend_B >= _LEAST_SATURATION)
    return np.where(is_over_B, bend_B, np.inf)


@lru_cache(maxsize=4)  # the tasks of a run have the same checkpoints
def _all_pieces(positions: bytes) -> _Pieces:
    """Every pair of candidate change points: checkpoints, and places between them, evenly."""
    position_C = np.frombuffer(positions)
    between = max(1, _CANDIDATES // len(position_C))
    fine = np.interp(
        np.linspace(0, len(position_C) - 1, between * (len(position_C) - 1) + 1),
        np.arange(len(position_C)),
        position_C,
    )
    candidates = fine[np.unique(np.linspace(0, len(fine) - 1, _CANDIDATES).round().astype(int))]
    # A piece of fewer than two checkpoints would follow one score.
    onsets = candidates[candidates <= position_C[-2]]
    bends = candidates[(candidates >= position_C[1]) & (candidates <= position_C[-2])]
    pairs = [(onset, np.inf) for onset in onsets]
    pairs += [
        (onset, bend) for onset in onsets for bend in bends if np.sum((position_C > onset) & (position_C <= bend))
    ]
    onset_K, bend_K = np.array(pairs).T
    rise_KC = np.maximum(position_C[None, :] - onset_K[:, None], 0.0)
    turn_KC = np.where(
        np.isfinite(bend_K)[:, None], np.maximum(position_C[None, :] - np.minimum(bend_K, 1e9)[:, None], 0.0), 0.0
    )
    rise_KC -= rise_KC.mean(axis=1, keepdims=True)
    turn_KC -= turn_KC.mean(axis=1, keepdims=True)
    scale_K = np.linalg.norm(rise_KC, axis=1)
    first_KC = rise_KC / scale_K[:, None]
    overlap_K = np.sum(first_KC * turn_KC, axis=1)
    turn_KC -= overlap_K[:, None] * first_KC
    bend_scale_K = np.linalg.norm(turn_KC, axis=1)
    second_KC = turn_KC / np.where(bend_scale_K > 1e-9, bend_scale_K, np.inf)[:, None]
    return _Pieces(onset_K, bend_K, first_KC, second_KC, scale_K, overlap_K, np.maximum(bend_scale_K, 1e-9))


def _best(pieces: _Pieces, value_BC: np.ndarray, noise: float) -> _Fit:
    """The best fit to each of B curves by BIC: a level 1 parameter, a rise 3, a rise and a bend 5."""
    count = value_BC.shape[1]
    mean_B = value_BC.mean(axis=1)
    centred_BC = value_BC - mean_B[:, None]
    first_BK, second_BK = centred_BC @ pieces.first_KC.T, centred_BC @ pieces.second_KC.T
    bend_BK = second_BK / pieces.bend_scale_K
    slope_BK = (first_BK - pieces.overlap_K * bend_BK) / pieces.scale_K
    total_B = np.sum(centred_BC**2, axis=1)
    residual_BK = np.maximum(total_B[:, None] - first_BK**2 - second_BK**2, 0.0)
    has_bend_K = np.isfinite(pieces.bend_K)
    score_BK = residual_BK / noise**2 + np.where(has_bend_K, 5.0, 3.0) * np.log(count)
    # The rise is the steepest piece: a slow drift before it is no onset, but part of the level.
    score_BK = np.where((slope_BK > 0) & (bend_BK <= 0), score_BK, np.inf)
    best_B = np.argmin(score_BK, axis=1)
    rows_B = np.arange(len(value_BC))
    is_level_B = score_BK[rows_B, best_B] >= total_B / noise**2 + np.log(count)
    rise_B, turn_B = first_BK[rows_B, best_B], second_BK[rows_B, best_B]
    fitted_BC = mean_B[:, None] + rise_B[:, None] * pieces.first_KC[best_B] + turn_B[:, None] * pieces.second_KC[best_B]
    slope_B, bend_B = slope_BK[rows_B, best_B], bend_BK[rows_B, best_B]
    has_bend_B = has_bend_K[best_B] & ~is_level_B
    return _Fit(
        onset_B=np.where(is_level_B, np.inf, pieces.onset_K[best_B]),
        bend_B=np.where(has_bend_B, pieces.bend_K[best_B], np.inf),
        slope_B=np.where(is_level_B, 0.0, slope_B),
        late_slope_B=np.where(has_bend_B, slope_B + bend_B, np.nan),
        fitted_BC=np.where(is_level_B[:, None], mean_B[:, None], fitted_BC),
        residual_B=np.where(is_level_B, total_B, residual_BK[rows_B, best_B]),
        pieces_B=np.where(is_level_B, 1, np.where(has_bend_B, 3, 2)),
    )
