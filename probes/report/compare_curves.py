"""What a comparison of runs draws: mean scores of each domain, the axes all runs share, the runs that stand out.

Plain arrays of a table of curves; drawing is for `compare_figures.py`. Tasks count alike, each rescaled by its chance,
and a mean is only over tasks that every run in it was scored on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.align import loss_series, positions
from probes.dynamics.metrics import plain
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve

AXIS_TITLES = {
    "tokens": "tokens",
    "tokens_per_parameter": "tokens per parameter",
    "flops": "training FLOPs",
    "loss": "loss",
}
MOST_HIGHLIGHTED = 8
_BIAS = "bias"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """The means of one domain.

    Attributes:
        domain: its name.
        tasks: that the mean is over.
        means: a curve for each run that was scored on all of them, by size; the task is `mean`.
        is_telling: whether its tasks are among those wanted; else they are all the domain has.
    """

    domain: str
    tasks: Sequence[str]
    means: Sequence[TaskCurve]
    is_telling: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One way to place checkpoints side by side.

    Attributes:
        key: one of `probes.dynamics.align.AXES`.
        title: with the series, for a loss.
        loss: the series, for a loss.
    """

    key: str
    title: str
    loss: Series | None = None

    @property
    def is_log(self) -> bool:
        """Whether it is drawn logarithmic; a loss is drawn linear and falling."""
        return self.key != "loss"

    def place(self, table: CurveTable, curve: TaskCurve) -> np.ndarray:
        """Where the checkpoints are drawn, in the axis's own unit; nan where that is not known."""
        placed_C = positions(table, curve, axis=self.key, loss=self.loss)
        return np.exp(placed_C) if self.is_log else -placed_C


def best_series(table: CurveTable, metrics: Sequence[str]) -> dict[str, Series]:
    """Of each task the series with one of these metrics that most runs have; of equals the earlier metric."""
    counts: Counter[Series] = Counter()
    for run in table.runs:
        counts.update(
            curve.series
            for curve in table.of_run(run)
            if plain(curve.metric) in metrics
            and curve.domain not in (LOSS_DOMAIN, _BIAS)
            and (curve.lower_is_better or np.isfinite(curve.chance))
        )
    found: dict[str, Series] = {}
    for series in sorted(counts, key=lambda one: (-counts[one], metrics.index(plain(one.metric)), one.num_fewshot)):
        found.setdefault(series.task, series)
    return found


def domain_panels(
    table: CurveTable, metrics: Sequence[str], *, wanted: Collection[Series] | None = None
) -> list[Panel]:
    """A panel for each domain, those with wanted tasks first, in order of first appearance.

    Where not all runs were scored on the same tasks, the mean is over the tasks of all; where there are none such, over
    those of the runs that have the task most runs have, and the other runs are left out.

    Args:
        table: the runs.
        metrics: to choose from, best first.
        wanted: of a domain that has some of these the mean is over them alone; all are wanted unless given.
    """
    names = list(table.runs)
    found: dict[str, list[Series]] = defaultdict(list)
    holders: dict[Series, list[str]] = {}
    domains: dict[str, str] = {}
    for run in names:
        for curve in table.of_run(run):
            domains.setdefault(curve.task, curve.domain)
    for task, series in best_series(table, metrics).items():
        found[domains[task]].append(series)
        holders[series] = [run for run in names if table.get(run, series) is not None]
    panels = []
    for domain in dict.fromkeys(domain for domain in domains.values() if domain in found):
        telling = [series for series in found[domain] if wanted is None or series in wanted]
        chosen, scored = _shared_by_all(telling or found[domain], holders)
        means = [mean for run in table.by_size(scored) if (mean := _mean(table, run, chosen, domain)) is not None]
        if means:
            tasks = [series.task for series in chosen]
            panels.append(Panel(domain=domain, tasks=tasks, means=means, is_telling=bool(telling)))
    return sorted(panels, key=lambda panel: not panel.is_telling)


def overall(panels: Sequence[Panel]) -> list[TaskCurve]:
    """The mean over the domains that tell something, of each run that is in all of them (or in the most)."""
    by_run: dict[str, list[TaskCurve]] = defaultdict(list)
    for panel in [panel for panel in panels if panel.is_telling] or panels:
        for curve in panel.means:
            by_run[curve.run].append(curve)
    most = max(map(len, by_run.values()), default=0)
    whole = [curves for curves in by_run.values() if len(curves) == most]
    # Runs that are in equally many panels need not be in the same ones.
    common = {curve.domain for curve in whole[0]} if whole else set()
    kept = [curves for curves in whole if {curve.domain for curve in curves} == common]
    return [mean for curves in kept if (mean := _mean_of(curves, domain="all domains")) is not None]


def shared_axes(table: CurveTable, runs: Sequence[str]) -> tuple[list[Axis], str]:
    """The axes on which all these runs can be placed, and why others are missing."""
    axes, missing = [Axis(key="tokens", title=AXIS_TITLES["tokens"])], []
    unsized = [run for run in runs if not table.runs[run].parameters]
    if not unsized:
        axes.append(Axis(key="tokens_per_parameter", title=AXIS_TITLES["tokens_per_parameter"]))
    without_flops = [run for run in unsized if not table.runs[run].flops_per_token]
    if not without_flops:
        axes.append(Axis(key="flops", title=AXIS_TITLES["flops"]))
    if unsized:
        missing.append(f"The size of {unsized[0]} is not known; --runs FILE can say it.")
    try:
        loss = loss_series(table.select(runs=runs))
    except ProbeError:
        loss = None
    if loss is not None and all(table.get(run, loss) is not None for run in runs):
        axes.append(Axis(key="loss", title=f"{AXIS_TITLES['loss']} ({loss.task})", loss=loss))
    else:
        missing.append("Not all runs have one and the same loss to be placed by.")
    return axes, " ".join(missing)


def highlighted(table: CurveTable, scores: Mapping[str, float], *, most: int = MOST_HIGHLIGHTED) -> list[str]:
    """The runs to draw in colour, by size: all, or runs under way, then the best of each size in turn.

    Args:
        table: the runs.
        scores: of each run, more is better; runs without one come last.
        most: how many.
    """
    if len(table.runs) <= most:
        return table.by_size(table.runs)
    ranked = sorted(table.runs, key=lambda run: -scores.get(run, -np.inf))
    chosen = [run for run in ranked if not table.is_finished(run)][: most // 2]
    sizes: dict[float, list[str]] = defaultdict(list)
    for run in ranked:
        if run not in chosen:
            sizes[table.runs[run].parameters or 0.0].append(run)
    while len(chosen) < most and any(sizes.values()):
        for size in sorted(sizes, reverse=True):
            if sizes[size] and len(chosen) < most:
                chosen.append(sizes[size].pop(0))
    return table.by_size(chosen)


def thinned(curve: TaskCurve, most: int) -> np.ndarray:
    """Indices of at most so many checkpoints, both ends among them: half evenly in tokens, half in their logarithm."""
    last = len(curve) - 1
    if last < most:
        return np.arange(last + 1)
    even = np.linspace(0, last, most - most // 2).round().astype(int)
    tokens_C = np.log(np.maximum(curve.tokens_C, curve.tokens_C[1]))
    octaves = np.searchsorted(tokens_C, np.linspace(tokens_C[1], tokens_C[-1], most // 2))
    return np.unique(np.concatenate([even, np.clip(octaves, 0, last)]))


def _shared_by_all(
    candidates: Sequence[Series], holders: Mapping[Series, Sequence[str]]
) -> tuple[list[Series], list[str]]:
    """The series that all runs have that have any; else those of the runs that have the commonest."""
    runs = list(dict.fromkeys(run for series in candidates for run in holders[series]))
    if not any(len(holders[series]) == len(runs) for series in candidates):
        commonest = max(candidates, key=lambda series: len(holders[series]))
        runs = list(holders[commonest])
    return [series for series in candidates if set(runs) <= set(holders[series])], runs


def _mean(table: CurveTable, run: str, chosen: Sequence[Series], domain: str) -> TaskCurve | None:
    return _mean_of([curve for series in chosen if (curve := table.get(run, series)) is not None], domain=domain)


def _mean_of(curves: Sequence[TaskCurve], *, domain: str) -> TaskCurve | None:
    """The unweighted mean, rescaled, at the checkpoints that all curves have, those before training left out."""
    first = curves[0]
    tokens_C = first.tokens_C
    if not all(np.array_equal(curve.tokens_C, tokens_C) for curve in curves[1:]):
        tokens_C = reduce(np.intersect1d, [curve.tokens_C for curve in curves])
    tokens_C = tokens_C[tokens_C > 0]
    if not len(tokens_C):
        return None
    rows = [np.searchsorted(curve.tokens_C, tokens_C) for curve in curves]
    value_KC = np.stack([curve.value_C[here] for curve, here in zip(curves, rows, strict=True)])
    stderr_KC = np.stack([curve.stderr_C[here] for curve, here in zip(curves, rows, strict=True)])
    chance_K = np.nan_to_num([curve.chance for curve in curves])[:, None]  # as `TaskCurve.rescaled`, all at once
    value_KC, stderr_KC = (value_KC - chance_K) / (1.0 - chance_K), stderr_KC / (1.0 - chance_K)
    return TaskCurve(
        run=first.run,
        task="mean",
        domain=domain,
        metric=first.metric,
        num_fewshot=-1,
        step_C=first.step_C[rows[0]],
        tokens_C=tokens_C,
        value_C=value_KC.mean(axis=0),
        stderr_C=np.sqrt((stderr_KC**2).sum(axis=0)) / len(curves),
        chance=0.0 if np.isfinite(first.chance) else float("nan"),
    )
