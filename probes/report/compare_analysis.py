"""What the analyses of `probes.dynamics` say of the runs compared, as the rows the page draws.

The only file of the report that calls them. What costs time is done for the runs that stand out and for the tasks that
matter, so that hundreds of runs are compared in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pretrain.errors import ProbeError
from probes.dynamics.benchmarks import benchmark_of
from probes.dynamics.beside_original import Beside, put_beside
from probes.dynamics.metrics import PLAINEST_FIRST
from probes.dynamics.onset import AT, ChangePoint, arise
from probes.dynamics.originals import find_original
from probes.dynamics.predict import predict_finals
from probes.dynamics.recommend import recommend
from probes.dynamics.references import family_references
from probes.dynamics.similarity import compare_sizes
from probes.dynamics.table import CurveTable, Series, TaskCurve
from probes.dynamics.trust import judge
from probes.report.compare_curves import MOST_HIGHLIGHTED, Panel, best_series, thinned
from probes.report.compare_intervals import OnsetRow, PredictionRow
from probes.report.compare_tables import SimilarityRow, TrustRow

HINDSIGHT = 0.3
"""Share of the tokens from which finished runs are predicted, to be held against what came."""
_MOST_PREDICTED_RUNS, _MOST_PREDICTED_TASKS = 4, 8
_MOST_CHECKED_OF_MANY = 2
_MOST_COMPARED_TASKS = 12
_MOST_ONSET_TASKS = 12
_FIT_CHECKPOINTS = 28
_ONSET_CHECKPOINTS, _ONSET_DRAWS = 60, 100
_SIMILARITY_CHECKPOINTS, _SIMILARITY_DRAWS = 60, 100
_LEAST_PAST = 4
_LEAST_TASKS, _MOST_PARTS = 6, 4
_FAMILY_RUNS, _MOST_REFERENCES = 12, 6


def telling(table: CurveTable, runs: Sequence[str]) -> set[Series]:
    """The scores that are worth watching in at least one of these runs."""
    wanted = set(best_series(table, PLAINEST_FIRST).values())
    verdicts = [one for one in judge(table.select(runs=runs)) if one.series in wanted]
    by_run = {run: [one for one in verdicts if one.run == run] for run in runs}
    return {one.series for run, own in by_run.items() for one in recommend(table, run, limit=len(own), verdicts=own)}


def predictions(table: CurveTable, runs: Sequence[str]) -> list[PredictionRow]:
    """Predicted finals of runs under way from now, and of finished ones from 30% of their tokens.

    Args:
        table: all runs; smaller finished ones of the family are references.
        runs: which to choose from: those under way first, then the largest.
    """
    running = [run for run in runs if not table.is_finished(run)]
    finished = [run for run in reversed(runs) if table.is_finished(run) and _has_past(table, run)]
    checked = _MOST_PREDICTED_RUNS if len(table.runs) <= MOST_HIGHLIGHTED else _MOST_CHECKED_OF_MANY
    rows: list[PredictionRow] = []
    for run in [*running, *finished[:checked]][:_MOST_PREDICTED_RUNS]:
        rows += _predictions_of(table, run)
    return rows


def onsets(table: CurveTable, panels: Sequence[Panel], runs: Sequence[str]) -> tuple[list[OnsetRow], list[OnsetRow]]:
    """When domains, and the tasks that matter, left chance in each of these runs."""
    means = [curve for panel in panels for curve in panel.means if curve.run in runs]
    domains = [_onset(table, curve, curve.domain) for curve in means]
    tasks: dict[Series, None] = {}
    for run in reversed(runs):
        tasks |= dict.fromkeys(_telling_series(table, run, _MOST_ONSET_TASKS))
    chosen = list(tasks)[:_MOST_ONSET_TASKS]
    return domains, [_onset(table, curve, curve.task) for one in chosen for curve in table.of_series(one, runs)]


def trust(table: CurveTable, runs: Sequence[str]) -> list[TrustRow]:
    """A verdict for each score of these runs; those recommended have a place."""
    wanted = set(best_series(table, PLAINEST_FIRST).values())
    rows = []
    verdicts = judge(table.select(runs=runs))
    for run in runs:
        own = [verdict for verdict in verdicts if verdict.run == run and verdict.series in wanted]
        places = {one.series: place for place, one in enumerate(recommend(table, run, verdicts=own))}
        rows += [
            TrustRow(
                run=run,
                label=verdict.series.task,
                metric=_metric(verdict.series),
                domain=verdict.domain,
                trusted=verdict.trusted,
                decays=verdict.decays,
                watched=places.get(verdict.series),
                above_chance=_known(verdict.above_chance),
                monotonicity=_known(verdict.monotonicity),
                gain=_known(verdict.gain),
                reason=verdict.reason,
            )
            for verdict in own
        ]
    return rows


def similarities(table: CurveTable, runs: Sequence[str], *, axis: str) -> list[SimilarityRow]:
    """How alike the tasks that matter are across sizes, over an axis; none without runs of several sizes."""
    chosen = _thinned(table.select(runs=runs), _SIMILARITY_CHECKPOINTS)
    tasks: dict[Series, None] = {}
    for run in reversed(runs):
        tasks |= dict.fromkeys(_telling_series(table, run, _MOST_COMPARED_TASKS))
    try:
        found = compare_sizes(chosen, series=list(tasks)[:_MOST_COMPARED_TASKS], axis=axis, draws=_SIMILARITY_DRAWS)
    except ProbeError:
        return []
    return [
        SimilarityRow(
            label=one.series.task,
            metric=_metric(one.series),
            axis=axis,
            value=one.similarity,
            low=_known(one.low),
            high=_known(one.high),
            ceiling=_known(one.ceiling),
            note=f"{one.words}; {one.num_pairs} pairs of runs",
        )
        for one in found.tasks
    ]


def beside(table: CurveTable, pairs: Sequence[tuple[str, str]]) -> list[Beside]:
    """Runs beside the originals they are paired with; those without a score of the same protocol are left out."""
    found = [put_beside(table, run, find_original(key)) for run, key in pairs]
    return [one for one in found if one.tasks]


def _has_past(table: CurveTable, run: str) -> bool:
    """Whether a finished run has checkpoints enough to be predicted from, by what it had seen then."""
    end = table.runs[run].total_tokens or table.last_tokens(run)
    return any(int(np.sum(curve.tokens_C <= HINDSIGHT * end)) >= _LEAST_PAST for curve in table.of_run(run))


def _predictions_of(table: CurveTable, run: str) -> list[PredictionRow]:
    facts, last = table.runs[run], table.last_tokens(run)
    end = facts.total_tokens or last
    finished = table.is_finished(run)
    at = HINDSIGHT * end if finished else last
    family = [name for name in table.runs if table.runs[name].family == facts.family]
    known = table.select(runs={run, *_nearest_in_size(table, run, family)}).until(run, at)
    seen = known.last_tokens(run)
    # What matters and who teaches is chosen as it could be then, from all checkpoints: decay is seen in few of them.
    series = _telling_series(known, run, _MOST_PREDICTED_TASKS)
    held = family_references(known, run)
    references = held.names[-_MOST_REFERENCES:]
    left_out = "".join(f"; {name} is no reference: {reason}" for name, reason in held.left_out.items())
    rows = []
    for one in predict_finals(_thinned(known, _FIT_CHECKPOINTS), run, series=series, references=references, tokens=end):
        curve = table.get(run, one.series)
        refused = one.refused is not None
        rows.append(
            PredictionRow(
                run=run,
                label=one.series.task,
                metric=_metric(one.series),
                at_tokens=seen,
                value=None if refused else one.value,
                low=None if refused else one.low,
                high=None if refused else one.high,
                came=float(curve.value_C[-1]) if finished and curve is not None else None,
                method=one.method + left_out,
                refused=one.refused or "",
            )
        )
    return rows


def _thinned(table: CurveTable, most: int) -> CurveTable:
    """Fewer checkpoints: a fit takes their number to the third, a smoothing its square, and answers hardly change."""
    return CurveTable(table.runs.values(), [curve.where(thinned(curve, most)) for curve in table])


def _nearest_in_size(table: CurveTable, run: str, family: Sequence[str]) -> list[str]:
    """Runs of the family below this one in size, the nearest, as many as a fit takes in a second or two."""
    smaller = [name for name in family if name != run and (table.runs[name].parameters or np.inf) < _size(table, run)]
    return table.by_size(smaller)[-_FAMILY_RUNS:]


def _size(table: CurveTable, run: str) -> float:
    return table.runs[run].parameters or 0.0


def _telling_series(table: CurveTable, run: str, most: int) -> list[Series]:
    """The tasks of a run to look at: all that are worth watching, and some others where those are few."""
    wanted = set(best_series(table.select(runs=[run]), PLAINEST_FIRST).values())
    verdicts = [one for one in judge(table.select(runs=[run])) if one.series in wanted]
    chosen = dict.fromkeys(one.series for one in recommend(table, run, limit=most, verdicts=verdicts))
    parts = Counter(benchmark_of(one.series.task) for one in verdicts)
    whole = [one for one in verdicts if parts[benchmark_of(one.series.task)] <= _MOST_PARTS]
    by_gain = sorted(whole, key=lambda one: -np.nan_to_num(one.gain))
    few = dict.fromkeys(one.series for one in by_gain[:_LEAST_TASKS])
    return list(chosen | few)[:most] if len(chosen) < _LEAST_TASKS else list(chosen)


def _onset(table: CurveTable, curve: TaskCurve, label: str) -> OnsetRow:
    """Interval ends beyond what was measured are put at the nearest checkpoint."""
    curve = curve.where(thinned(curve, _ONSET_CHECKPOINTS))
    found = arise(table, curve, draws=_ONSET_DRAWS)
    first, last = float(curve.tokens_C[curve.tokens_C > 0][0]), float(curve.tokens_C[-1])

    def within(tokens: float) -> float:
        return min(max(tokens, first), last)

    def place(point: ChangePoint) -> float | None:
        return point.tokens if point.state == AT else None

    onset = found.onset
    notes = [found.reason] if found.reason else [f"onset {onset.state}"] if onset.state != AT else []
    return OnsetRow(
        run=curve.run,
        label=label,
        tokens=place(onset),
        low=within(onset.low) if onset.state == AT else None,
        high=within(onset.high) if onset.state == AT else None,
        saturated_tokens=place(found.saturation),
        note="; ".join(notes),
    )


def _metric(series: Series) -> str:
    return series.metric + (f", {series.num_fewshot}-shot" if series.num_fewshot >= 0 else "")


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
