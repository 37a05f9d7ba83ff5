"""Whether a run decays: whether more of its tasks have lost what they had than luck gives among so many.

Separate from `probes.dynamics.trust`, whose verdicts speak of single curves. A task counts once, whatever its metrics,
shots and splits, and only if it had something to lose. A benchmark of many parts counts as one task, the mean of its
parts, since they rise and swing together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import stats

from probes.dynamics.benchmarks import LARGE_BENCHMARK, parts_of_large_benchmarks
from probes.dynamics.metrics import ACCURACIES, BITS_PER_BYTE, plain
from probes.dynamics.table import CurveTable, Series, TaskCurve, make_curve
from probes.dynamics.tasks import without_split
from probes.dynamics.trust import TrustRule, Verdict, judge

_SPEAKING = (*ACCURACIES, *BITS_PER_BYTE)
"""Margins and shares of probability may fall while the answers get better."""

_FALLS = ((2.5, 0.08), (3.5, 0.02), (5.0, 0.01))
"""Falls in units of checkpoint noise, and the largest share of curves that fall so far by luck: curves that rose in the
first tenth of a run and then only swing, with 5 to 300 checkpoints, simulated. Curves that still rise fall less often:
of those of healthy runs (Pythia 410M to 12B, the ladder's shortest) 0.4 % had fallen by 2.5."""
_LARGEST_P_VALUE = 0.01
"""A healthy run is called decaying at most so often, however many its tasks."""
_COUNTS = 2
"""Correction for counting at three falls: the counts depend on each other, so that it is less than three."""
_FEWEST_TASKS = 2
"""What one task loses may be its own affair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decay:
    """How much of what it had learnt a run has lost.

    Attributes:
        run: its name.
        num_tasks: tasks that had something to lose; a benchmark of many parts counts as one.
        tasks: those that lost it, the largest loss in units of noise first.
        p_value: of so many losses of such sizes by luck among so many tasks.
        decays: whether that speaks of the run and not of its tasks.
    """

    run: str
    num_tasks: int
    tasks: tuple[str, ...]
    p_value: float
    decays: bool

    @property
    def reason(self) -> str:
        """One sentence with the numbers."""
        named = ", ".join(self.tasks[:3]) + (", …" if len(self.tasks) > 3 else "")
        share = f"{len(self.tasks)} of {self.num_tasks} tasks that had risen have lost part of what they had"
        return f"{share}: {named}"


@dataclass(frozen=True, slots=True)
class _Task:
    """What stands for one task: its clearest curve, and how many tasks it counts for."""

    name: str
    verdict: Verdict
    weight: int = 1


def decay_of(table: CurveTable, run: str, *, rule: TrustRule | None = None) -> Decay:
    """How much of what it had a run has lost at its latest checkpoint.

    Args:
        table: has the run.
        run: the run.
        rule: of trust; the default one unless given.
    """
    rule = rule or TrustRule()
    tasks = _tasks(table, run, rule)
    number = sum(task.weight for task in tasks)
    p_value = 1.0
    for fall, share in _FALLS:
        fallen = sum(task.weight for task in tasks if task.verdict.decays and task.verdict.decay > fall)
        if fallen >= _FEWEST_TASKS:
            p_value = min(p_value, _COUNTS * float(stats.binom.sf(fallen - 1, number, share)))
    lost = sorted((task for task in tasks if task.verdict.decays), key=lambda task: -task.verdict.decay)
    return Decay(
        run=run,
        num_tasks=len(tasks),
        tasks=tuple(task.name for task in lost),
        p_value=p_value,
        decays=p_value <= _LARGEST_P_VALUE,
    )


def decaying_runs(table: CurveTable, runs: Sequence[str]) -> dict[str, Decay]:
    """Those of the runs that decay."""
    found = {run: decay_of(table, run) for run in runs}
    return {run: decay for run, decay in found.items() if decay.decays}


def _tasks(table: CurveTable, run: str, rule: TrustRule) -> list[_Task]:
    """What had something to lose, each task by the curve that rose most clearly."""
    verdicts = [one for one in judge(table, runs=[run], rule=rule) if plain(one.series.metric) in _SPEAKING]
    part_of = parts_of_large_benchmarks(verdict.series for verdict in verdicts)
    found: dict[str, list[_Task]] = defaultdict(list)
    parts: dict[tuple[str, str, int], list[Verdict]] = defaultdict(list)
    sizes = Counter((part_of[one], one.metric, one.num_fewshot) for one in part_of)
    for one in verdicts:
        if one.risen and one.series in part_of:
            parts[part_of[one.series], one.series.metric, one.series.num_fewshot].append(one)
        elif one.risen:
            name = without_split(one.series.task)
            found[name].append(_Task(one.series.task, one))
    for (benchmark, metric, shots), group in parts.items():
        curves = [curve for one in group if (curve := table.get(run, one.series)) is not None]
        mean = _mean(curves, Series(benchmark, metric, shots))
        name = f"{benchmark} ({len(group)} of {sizes[benchmark, metric, shots]} parts)"
        whole = judge(CurveTable([table.runs[run]], [mean]), rule=rule)
        found[benchmark] += [_Task(name, one, _weight(one, group)) for one in whole if one.risen]
    return [max(group, key=lambda task: task.verdict.rise) for group in found.values() if group]


def _weight(mean: Verdict, parts: Sequence[Verdict]) -> int:
    """Two for a benchmark whose mean falls far and of whose parts at least half do: that is no affair of one task."""
    fallen = sum(part.decays for part in parts)
    is_clear = mean.decays and mean.decay > _FALLS[-1][0] and len(parts) >= LARGE_BENCHMARK and 2 * fallen >= len(parts)
    return 2 if is_clear else 1


def _mean(curves: Sequence[TaskCurve], series: Series) -> TaskCurve:
    """The mean of parts of a benchmark at the checkpoints that all have."""
    shared = reduce(np.intersect1d, [curve.tokens_C for curve in curves])
    rows = [curve.where(np.isin(curve.tokens_C, shared)) for curve in curves]
    return make_curve(
        rows[0].step_C,
        shared,
        np.mean([curve.value_C for curve in rows], axis=0),
        np.sqrt(np.sum([curve.stderr_C**2 for curve in rows], axis=0)) / len(rows),
        run=curves[0].run,
        series=series,
        domain=curves[0].domain,
        chance=float(np.mean([curve.chance for curve in rows])),
    )
