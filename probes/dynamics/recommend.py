"""The few tasks and metrics to watch at this size and stage of a run, and from when on others will tell something.

Chosen among the verdicts of `probes.dynamics.trust`: one metric a task, the domains in turn, the clearest signal first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.dynamics.benchmarks import parts_of_large_benchmarks
from probes.dynamics.metrics import is_text_loss
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series
from probes.dynamics.tasks import is_twin
from probes.dynamics.trust import TrustRule, Verdict, judge

_MOST_LOOKS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """One task and metric to watch.

    Attributes:
        series: task, metric and number of examples in the prompt.
        domain: its domain.
        reason: why, in words with numbers.
        verdict: what it rests on.
    """

    series: Series
    domain: str
    reason: str
    verdict: Verdict


def recommend(
    table: CurveTable,
    run: str,
    *,
    tokens: float | None = None,
    limit: int = 6,
    rule: TrustRule | None = None,
    verdicts: Sequence[Verdict] | None = None,
) -> list[Recommendation]:
    """The tasks to watch, most telling first; none if nothing can be trusted yet.

    Args:
        table: has the run.
        run: the run to choose for.
        tokens: choose as when the run had seen so many; now unless given.
        limit: at most so many.
        rule: of trust; the default one unless given.
        verdicts: of this run now, if they are known already.
    """
    if verdicts is None:
        known = table if tokens is None else table.until(run, tokens)
        verdicts = judge(known.select(runs=[run]), runs=[run], rule=rule)
    best: dict[str, Verdict] = {}
    for verdict in _worth_watching([one for one in verdicts if one.run == run]):
        task = next((task for task in best if is_twin(task, verdict.series.task)), verdict.series.task)
        if task not in best or verdict.gain > best[task].gain:
            best[task] = verdict
    waiting: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in sorted(best.values(), key=lambda verdict: -verdict.gain):
        waiting[verdict.domain].append(verdict)
    chosen: list[Verdict] = []
    while len(chosen) < limit and any(waiting.values()):
        # In turn, so that the few cover what abilities there are before one is covered twice.
        firsts = sorted((queue.pop(0) for queue in waiting.values() if queue), key=lambda verdict: -verdict.gain)
        chosen.extend(firsts[: limit - len(chosen)])
    return [
        Recommendation(series=verdict.series, domain=verdict.domain, reason=verdict.reason, verdict=verdict)
        for verdict in chosen
    ]


def trusted_since(table: CurveTable, run: str, *, rule: TrustRule | None = None) -> dict[Series, float]:
    """Tokens from which on each series could be trusted at every later look; series that cannot be now are left out.

    Args:
        table: has the run.
        run: whose checkpoints are looked at: thirty of them, evenly, where it has more.
        rule: of trust; the default one unless given.
    """
    own = table.select(runs=[run])
    every = sorted({float(tokens) for curve in own.of_run(run) for tokens in curve.tokens_C})
    looks = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, _MOST_LOOKS).round().astype(int))]
    since: dict[Series, float] = {}
    for look in looks:
        trusted = {verdict.series for verdict in judge(own.until(run, look), rule=rule) if verdict.trusted}
        since = {series: since.get(series, look) for series in trusted}
    return since


def soon(table: CurveTable, run: str, *, rule: TrustRule | None = None) -> dict[Series, tuple[float, str]]:
    """Tasks that cannot be trusted yet, but could be in the finished run of the family that is nearest in size.

    Args:
        table: has the run and others.
        run: in progress, or cut with `CurveTable.until`.
        rule: of trust; the default one unless given.

    Returns:
        Tokens from which on it could be trusted there, later than now, and that run's name; empty without such a run.
    """
    own = table.runs[run]
    others = [
        facts
        for name, facts in table.runs.items()
        if name != run and facts.family == own.family and facts.parameters and table.is_finished(name)
    ]
    if not own.parameters or not others:
        return {}
    size = own.parameters
    nearest = min(others, key=lambda facts: abs(np.log((facts.parameters or size) / size))).name
    now = table.last_tokens(run)
    since = trusted_since(table, nearest, rule=rule)
    trusted = {verdict.series.task for verdict in judge(table.select(runs=[run]), rule=rule) if verdict.trusted}
    worth = {one.series for one in _worth_watching(judge(table.select(runs=[nearest]), rule=rule))}
    return {
        series: (tokens, nearest)
        for series, tokens in sorted(since.items(), key=lambda item: item[1])
        if series in worth and series.task not in trusted and tokens > now
    }


def _worth_watching(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Trusted tasks, without losses and without single parts of a large benchmark whose other parts are not.

    Two of MMLU's 57 subjects that rise tell of the wording of their answers, not of MMLU.
    """
    part_of = parts_of_large_benchmarks(verdict.series for verdict in verdicts)
    groups: dict[tuple[str, str, int], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        series = verdict.series
        groups[part_of.get(series, series.task), series.metric, series.num_fewshot].append(verdict)
    kept: list[Verdict] = []
    for group in groups.values():
        trusted = [verdict for verdict in group if verdict.trusted]
        is_loss = group[0].domain == LOSS_DOMAIN or is_text_loss(group[0].series.metric)
        if not is_loss and 2 * len(trusted) >= len(group):
            kept.extend(trusted)
    return kept
