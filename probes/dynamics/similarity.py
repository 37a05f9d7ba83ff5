"""How alike the dynamics of a task are in runs of different sizes, and which tasks are alike in all of them.

Three measures of two curves on common points: Pearson's and Spearman's correlation of levels, and closeness, 1 − mean
distance over the range. Increments are not correlated: between neighbouring checkpoints they are mostly noise. Beside
it stands the ceiling, the same of two runs of one size: no task can be expected to be more alike than that.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from probes.dynamics.align import common_points, positions
from probes.dynamics.definitions import kendall
from probes.dynamics.noise import judged_stderr, judged_value, noise_of, smooth
from probes.dynamics.table import CurveTable, Series, TaskCurve

MEASURES = ("pearson", "spearman", "closeness", "similarity")
"""`similarity` is the mean of the three others, and what tasks are ranked by."""

_MOST_POINTS = 40
_LEAST_POINTS = 4
_SAME_SIZE = 1.02
_NOISY = 0.6
_ALIKE = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
    """How alike one series is in runs of different sizes; measures are means over pairs of runs, 1 for equal curves.

    Attributes:
        series: task, metric and number of examples in the prompt.
        domain: its domain.
        num_pairs: pairs of runs of one family and different sizes.
        pearson: correlation of levels; 0 of a constant curve, which has no dynamics to share.
        spearman: the same of ranks.
        closeness: 1 − mean distance over the range of the two curves.
        similarity: mean of the three.
        low: lower end of the interval of `similarity` under checkpoint noise and another choice of sizes.
        high: upper end.
        distance: mean distance in the metric's unit (perplexities: nats).
        ceiling: `similarity` of runs of one size; nan without any.
        num_ceiling_pairs: pairs of runs of one size.
        words: `alike` if the whole interval is above 0.8; `noise` where the ceiling is below 0.6, so that not even runs
            of one size are alike, or without a ceiling the similarity itself; `partly` between the two.
    """

    series: Series
    domain: str
    num_pairs: int
    pearson: float
    spearman: float
    closeness: float
    similarity: float
    low: float
    high: float
    distance: float
    ceiling: float
    num_ceiling_pairs: int
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeComparison:
    """The tasks by how alike their dynamics are, and how far that ranking can be relied on.

    Attributes:
        axis: what the runs were aligned by.
        tasks: most alike first.
        stability: mean Kendall τ between the ranking and those under noise and another choice of sizes, by measure.
        ceiling_stability: the same for the ranking by runs of one size; nan without any.
        agreement: Kendall τ between the ranking and that by runs of one size; nan without any.
    """

    axis: str
    tasks: tuple[Similarity, ...]
    stability: Mapping[str, float]
    ceiling_stability: Mapping[str, float]
    agreement: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """All pairs of one series: sizes of the two, observed measures and those of each draw."""

    sizes: np.ndarray  # P × 2, indices into the sizes
    observed: Mapping[str, np.ndarray]  # P
    drawn: Mapping[str, np.ndarray]  # P × B
    distance: np.ndarray  # P


def compare_sizes(
    table: CurveTable,
    *,
    series: Collection[Series] | None = None,
    axis: str = "tokens",
    loss: Series | None = None,
    since_step: int | None = None,
    draws: int = 200,
    level: float = 0.8,
    seed: int = 0,
) -> SizeComparison:
    """Similarity of each series between the sizes of each family, and its ceiling.

    Noise is drawn about the smoothed curves (about the scores it would count twice), sizes with replacement.

    Args:
        table: runs with known parameters; pairs of one family and different sizes are compared, pairs of one size (of
            any family: other seed, other data) are the ceiling.
        series: which; all that are measured on two runs or more unless given.
        axis: see `probes.dynamics.align`.
        loss: what the axis `loss` is made of.
        since_step: earlier checkpoints are left out; by default as `TaskCurve.first_steps` has it.
        draws: of the bootstrap.
        level: of the intervals.
        seed: of the draws.

    Raises:
        ProbeError: no such axis, or no loss to align by.
    """
    rng = np.random.default_rng(seed)
    names = [name for name in table.by_size(table.runs) if table.runs[name].parameters]
    size_of = _sizes(table, names)
    count_BS = _size_counts(rng, max(size_of.values(), default=-1) + 1, draws)
    found: list[tuple[Similarity, dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for one in table.series() if series is None else series:
        curves = [
            curve.since_step(
                curve.first_steps(table.runs[curve.run].total_tokens) if since_step is None else since_step
            )
            for curve in table.of_series(one, names)
        ]
        curves = [curve for curve in curves if len(curve) >= _LEAST_POINTS]
        drawn = [_draw(curve, draws, rng) for curve in curves]
        places = [positions(table, curve, axis=axis, loss=loss) for curve in curves]
        between, ceiling = _pairs(table, curves, drawn, places, size_of)
        if len(between.distance):
            values = _averaged(between, count_BS)
            found.append(
                (_summary(curves[0], between, ceiling, values["similarity"], level), values, _one_size(ceiling))
            )
    order = sorted(range(len(found)), key=lambda row: -found[row][0].similarity)
    tasks = tuple(found[row][0] for row in order)
    stability, ceiling_stability, agreement = {}, {}, {}
    for measure in MEASURES:
        ranked_TB = np.array([found[row][1][measure] for row in order])
        ceiling_TB = np.array([found[row][2][measure] for row in order])
        stability[measure] = _stability(ranked_TB)
        ceiling_stability[measure] = _stability(ceiling_TB)
        agreement[measure] = _tau(ranked_TB[:, 0], ceiling_TB[:, 0]) if len(order) > 1 else float("nan")
    return SizeComparison(
        axis=axis, tasks=tasks, stability=stability, ceiling_stability=ceiling_stability, agreement=agreement
    )


def similarity_of_runs(
    table: CurveTable,
    runs: Sequence[str],
    *,
    series: Collection[Series],
    axis: str = "tokens",
    loss: Series | None = None,
) -> np.ndarray:
    """How alike each pair of runs is, whatever their sizes and families: the mean `similarity` of their curves.

    Args:
        table: has the runs.
        runs: N names.
        series: what is compared of them.
        axis: see `probes.dynamics.align`.
        loss: what the axis `loss` is made of.

    Returns:
        N × N, symmetric, 1 on the diagonal; nan for pairs without a curve in common that can be compared.
    """
    total_NN, count_NN = np.zeros((len(runs), len(runs))), np.zeros((len(runs), len(runs)))
    for one in series:
        curves = [
            (row, curve.since_step(curve.first_steps(table.runs[name].total_tokens)))
            for row, name in enumerate(runs)
            if (curve := table.get(name, one)) is not None
        ]
        places = {row: positions(table, curve, axis=axis, loss=loss) for row, curve in curves if len(curve)}
        judged = {row: judged_value(curve) for row, curve in curves if len(curve)}
        for first, second in itertools.combinations(places, 2):
            found = shared_points(places[first], places[second])
            if found is not None:
                alike = measures(judged[first] @ found[0].T, judged[second] @ found[1].T)["similarity"]
                total_NN[first, second] += alike
                count_NN[first, second] += 1
    with np.errstate(invalid="ignore"):
        mean_NN = np.where(count_NN > 0, total_NN / count_NN, np.nan)
    mean_NN = np.where(np.isfinite(mean_NN), mean_NN, mean_NN.T)
    np.fill_diagonal(mean_NN, 1.0)
    return mean_NN


def shared_points(first_C: np.ndarray, second_D: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The matrices P × C and P × D that make scores on common points of those of two curves; None with too few points.

    Args:
        first_C: positions of one curve, as `positions` gives them.
        second_D: of the other.
    """
    points_P, (first_PC, second_PD) = common_points([first_C, second_D])
    if len(points_P) < _LEAST_POINTS:
        return None
    rows = np.unique(np.linspace(0, len(points_P) - 1, _MOST_POINTS).round().astype(int))
    return first_PC[rows], second_PD[rows]


def measures(first_XP: np.ndarray, second_XP: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of curves on common points, along the last axis.

    Args:
        first_XP: levels, more is better or not alike in both.
        second_XP: the same shape.
    """
    span_X = np.maximum(first_XP.max(axis=-1), second_XP.max(axis=-1))
    span_X = span_X - np.minimum(first_XP.min(axis=-1), second_XP.min(axis=-1))
    found = {
        "pearson": _correlation(first_XP, second_XP),
        "spearman": _correlation(stats.rankdata(first_XP, axis=-1), stats.rankdata(second_XP, axis=-1)),
        "closeness": 1.0 - np.mean(np.abs(first_XP - second_XP), axis=-1) / np.where(span_X > 0, span_X, 1.0),
    }
    return found | {"similarity": np.mean(list(found.values()), axis=0)}


def _correlation(first_XP: np.ndarray, second_XP: np.ndarray) -> np.ndarray:
    first_XP = first_XP - first_XP.mean(axis=-1, keepdims=True)
    second_XP = second_XP - second_XP.mean(axis=-1, keepdims=True)
    scale_X = np.sqrt(np.sum(first_XP**2, axis=-1) * np.sum(second_XP**2, axis=-1))
    return np.asarray(np.sum(first_XP * second_XP, axis=-1) / np.where(scale_X > 1e-15, scale_X, np.inf))


def _sizes(table: CurveTable, names: Sequence[str]) -> dict[str, int]:
    """Index of each run's size; runs by size, those within 2% share one."""
    found: dict[str, int] = {}
    index, before = -1, 0.0
    for name in names:
        parameters = float(table.runs[name].parameters or 0.0)
        if parameters > before * _SAME_SIZE:
            index += 1
        before = parameters
        found[name] = index
    return found


def _size_counts(rng: np.random.Generator, num_sizes: int, draws: int) -> np.ndarray:
    """How often each draw has each size; at least two of them, or there is nothing to compare."""
    counts = [np.ones(num_sizes)]
    while len(counts) <= draws:
        count_S = np.bincount(rng.integers(0, max(num_sizes, 1), num_sizes), minlength=num_sizes).astype(float)
        if np.sum(count_S > 0) >= min(2, num_sizes):
            counts.append(count_S)
    return np.array(counts)


def _draw(curve: TaskCurve, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The judged scores, and below them draws of noise about the smoothed curve: 1 + B rows."""
    judged = replace(curve, value_C=judged_value(curve), stderr_C=judged_stderr(curve))
    drawn_BC = smooth(judged).value_C + noise_of(curve) * rng.normal(size=(draws, len(curve)))
    return np.vstack([judged.value_C, drawn_BC])


def _pairs(
    table: CurveTable,
    curves: Sequence[TaskCurve],
    drawn: Sequence[np.ndarray],
    places: Sequence[np.ndarray],
    size_of: Mapping[str, int],
) -> tuple[_Pairs, _Pairs]:
    """Pairs of one family and different sizes, and pairs of one size."""
    collected: dict[bool, list[tuple[tuple[int, int], dict[str, np.ndarray], float]]] = {True: [], False: []}
    for first in range(len(curves)):
        for second in range(first + 1, len(curves)):
            names = curves[first].run, curves[second].run
            sizes = size_of[names[0]], size_of[names[1]]
            is_one_size = sizes[0] == sizes[1]
            if not is_one_size and table.runs[names[0]].family != table.runs[names[1]].family:
                continue
            found = shared_points(places[first], places[second])
            if found is None:
                continue
            first_PC, second_PD = found
            one_BP, other_BP = drawn[first] @ first_PC.T, drawn[second] @ second_PD.T
            distance = float(np.mean(np.abs(one_BP[0] - other_BP[0])))
            collected[is_one_size].append((sizes, measures(one_BP, other_BP), distance))
    between, ceiling = (
        _Pairs(
            np.array([sizes for sizes, _, _ in pairs], int).reshape(-1, 2),
            {name: np.array([values[name][0] for _, values, _ in pairs]) for name in MEASURES},
            {name: np.array([values[name] for _, values, _ in pairs]) for name in MEASURES},
            np.array([distance for _, _, distance in pairs]),
        )
        for pairs in (collected[False], collected[True])
    )
    return between, ceiling


def _averaged(pairs: _Pairs, count_BS: np.ndarray) -> dict[str, np.ndarray]:
    """Means over pairs, observed first and then of each draw of noise and sizes; nan where no pair is left."""
    weight_BP = count_BS[:, pairs.sizes[:, 0]] * count_BS[:, pairs.sizes[:, 1]]
    total_B = weight_BP.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return {name: np.einsum("bp,pb->b", weight_BP, pairs.drawn[name]) / total_B for name in MEASURES}


def _one_size(pairs: _Pairs) -> dict[str, np.ndarray]:
    """Means over pairs of one size, observed first and then of each draw of noise; nan without pairs."""
    if not len(pairs.distance):
        return {name: np.full(1, np.nan) for name in MEASURES}
    return {name: pairs.drawn[name].mean(axis=0) for name in MEASURES}


def _summary(curve: TaskCurve, between: _Pairs, ceiling: _Pairs, similarity_B: np.ndarray, level: float) -> Similarity:
    means = {name: float(np.mean(between.observed[name])) for name in MEASURES}
    low, high = np.nanquantile(similarity_B[1:], [0.5 - level / 2.0, 0.5 + level / 2.0])
    top = float(np.mean(ceiling.observed["similarity"])) if len(ceiling.distance) else float("nan")
    reference = top if np.isfinite(top) else means["similarity"]
    words = "noise" if reference < _NOISY else "alike" if low >= _ALIKE else "partly"
    return Similarity(
        series=curve.series,
        domain=curve.domain,
        num_pairs=len(between.distance),
        low=float(low),
        high=float(high),
        distance=float(np.mean(between.distance)),
        ceiling=top,
        num_ceiling_pairs=len(ceiling.distance),
        words=words,
        **means,
    )


def _stability(value_TB: np.ndarray) -> float:
    """Mean Kendall τ between the first column's ranking and those of the others; nan without draws or tasks."""
    if value_TB.ndim < 2 or value_TB.shape[0] < 2 or value_TB.shape[1] < 2:
        return float("nan")
    taus = [_tau(value_TB[:, 0], value_TB[:, column]) for column in range(1, value_TB.shape[1])]
    return float(np.nanmean(taus)) if np.isfinite(taus).any() else float("nan")


def _tau(first_T: np.ndarray, second_T: np.ndarray) -> float:
    known_T = np.isfinite(first_T) & np.isfinite(second_T)
    return kendall(first_T[known_T], second_T[known_T]) if known_T.sum() > 1 else float("nan")
