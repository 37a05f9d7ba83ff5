"""Whether a run is healthy, in plain words with numbers: `healthy`, `watch`, `act`, or `unknown` if nothing is judged.

The paper's "user-friendly strategy for evaluating the optimization state" (arXiv 2404.01204) made concrete: scores
against what runs of this size and token count had, against the run's own past, beside its loss and its learning rate.
Thresholds are in standard deviations and fixed before looking at faults; `tests.bench.dynamics` says what they catch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pretrain.track.legible import legible_count
from probes.dynamics.decay import decay_of
from probes.dynamics.evidence import ACT, HEALTHY, UNKNOWN, VERDICTS, WATCH, Evidence, gravest
from probes.dynamics.expectation import FEWEST_CHECKPOINTS, WINDOWS, Expectation, Surprise, expect, pooled
from probes.dynamics.noise import judged_value
from probes.dynamics.references import References, family_references
from probes.dynamics.surface import relevant
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve
from probes.dynamics.watched import watch_list, why_nothing

WATCH_FROM = 2.5
ACT_FROM = 3.3
"""Standard deviations below expectation, of all tasks of a domain or of the run together."""

_FALLS_BEHIND_FROM = 2.0
"""The same where the loss goes as expected: two records that disagree need less."""
LEVEL_FROM = 3.0
_EARLY_SHARE = 0.15
"""Of a run: before that, warm-up and the first steep rise differ between recipes, and no deviation is called `act`."""

_UNCHANGED_SERIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainState:
    """How one domain stands.

    Attributes:
        domain: its name.
        verdict: of its tasks together; `unknown` if none of them is judged.
        change: their deviation from expectation in the window that shows it best; nan if nothing is expected.
        level: deviation of the latest scores from runs of this size and token count; nan without references.
        tasks: of the latest checkpoint, seen and expected.
        unknown: why none of its tasks is judged; empty if some are.
    """

    domain: str
    verdict: str
    change: float = float("nan")
    level: float = float("nan")
    tasks: tuple[Surprise, ...] = ()
    unknown: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What can be said of a run at its latest checkpoint.

    Attributes:
        run: its name.
        step: of the checkpoint.
        tokens: of the checkpoint.
        verdict: the gravest that the evidence calls for; `unknown` if there is none and nothing was judged.
        basis: what the run was held against, in words.
        domains: one by one.
        evidence: what speaks for more than `healthy`, the worst first; empty if nothing does.
        change: deviation of all tasks together, in the window that shows it best.
        unknown: why nothing was judged, in words; empty if something was.
        no_references: smaller runs of its family that it was not held against, with the reason; empty where the
            references were given.
    """

    run: str
    step: int
    tokens: float
    verdict: str
    basis: str
    domains: tuple[DomainState, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    change: float = float("nan")
    unknown: str = ""
    no_references: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line: the verdict and the first reason."""
        if self.evidence:
            return f"{self.verdict}: {self.evidence[0].sentence}"
        return f"{self.verdict}: " + (
            f"nothing is judged. {self.unknown}" if self.unknown else f"as expected from {self.basis}"
        )


def assess(
    table: CurveTable, run: str, *, references: Sequence[str] | None = None, expectation: Expectation | None = None
) -> State:
    """The state of a run at its latest checkpoint in the table.

    Args:
        table: what is known now.
        run: the run.
        references: runs to hold it against; by default finished smaller runs of its family, else its own past.
        expectation: learnt before (at a hook's start); by default made here.
    """
    held = family_references(table, run) if references is None else References(table, list(references), {})
    chosen = held.names
    seen = watch_list(table, run, chosen)
    if expectation is None:
        expectation = expect(table, run, seen.series, references=chosen)
    tokens, facts = table.last_tokens(run), table.runs[run]
    curves = [
        curve
        for one in expectation.surfaces
        if (curve := table.get(run, one)) is not None and curve.tokens_C[-1] == tokens
    ]
    tasks = [curve for curve in curves if curve.domain != LOSS_DOMAIN]
    losses = [curve for curve in curves if curve.domain == LOSS_DOMAIN]
    early = facts.total_tokens is not None and tokens < _EARLY_SHARE * facts.total_tokens
    supported = expectation.supports(tokens) or not expectation.references
    limit = ACT if supported and not early else WATCH
    evidence = [
        *_unchanged(table, run, tokens),
        *_learning_rate(table, run, tokens),
        *_decay(table, run),
    ]
    # One table for domains, all tasks and losses: each entry conditions a process on the run's own past.
    changes = [
        {curve.series: expectation.change(curve, window, total_tokens=facts.total_tokens) for curve in curves}
        for window in WINDOWS
    ]
    levels = {curve.series: level for curve in tasks if (level := expectation.level(curve)) is not None}
    judged = {one for by_series in changes for one, change in by_series.items() if change is not None} | set(levels)
    loss_change = _worst_window(changes, losses)
    loss_deviation = pooled(loss_change)
    if loss_deviation <= -WATCH_FROM:
        evidence.append(_loss_evidence(loss_change, loss_deviation, limit))
    left_out = seen.left_out | {one: _why_not(table, run, one) for one in seen.series if one not in judged}
    domains = []
    for domain in dict.fromkeys(curve.domain for curve in tasks if curve.series in judged):
        of_domain = [curve for curve in tasks if curve.domain == domain]
        of_level = [levels[curve.series] for curve in of_domain if curve.series in levels]
        state, found = _domain(domain, _worst_window(changes, of_domain), of_level, limit)
        domains.append(state)
        evidence += found
    domains += _unknown_domains(table, run, left_out, {state.domain for state in domains})
    together = _worst_window(changes, tasks)
    change = pooled(together)
    evidence += _together(together, change, losses, loss_deviation, limit)
    evidence.sort(key=lambda one: -VERDICTS.index(one.verdict))
    return State(
        run=run,
        step=max((int(curve.step_C[-1]) for curve in table.of_run(run)), default=-1),
        tokens=tokens,
        verdict=gravest((one.verdict for one in evidence), default=HEALTHY if judged else UNKNOWN),
        basis=_basis(expectation, tokens),
        domains=tuple(domains),
        evidence=tuple(evidence),
        change=change,
        unknown="" if judged else why_nothing(table, run, left_out),
        no_references=held.left_out,
    )


def state_rows(state: State) -> list[dict[str, Any]]:
    """One row for each task of each domain: what was seen and expected, with the domain's verdict.

    A domain of which no task is judged has one row, with the reason.
    """

    def of_domain(domain: DomainState) -> dict[str, Any]:
        return {
            "run": state.run,
            "step": state.step,
            "tokens": state.tokens,
            "run_verdict": state.verdict,
            "domain": domain.domain,
            "verdict": domain.verdict,
            "change": domain.change,
            "level": domain.level,
        }

    return [
        of_domain(domain)
        | {
            "task": task.series.task,
            "metric": task.series.metric,
            "shots": task.series.num_fewshot if task.series.num_fewshot >= 0 else None,
            "seen": task.seen,
            "expected": task.expected,
            "deviation": task.deviation,
        }
        for domain in state.domains
        for task in domain.tasks
    ] + [of_domain(domain) | {"reason": domain.unknown} for domain in state.domains if not domain.tasks]


def _domain(
    domain: str, worst: Sequence[Surprise], levels: Sequence[Surprise], limit: str
) -> tuple[DomainState, list[Evidence]]:
    change, level = pooled(worst), pooled(levels)
    evidence = []
    verdict = _verdict(change, limit)
    if verdict != HEALTHY:
        evidence.append(
            Evidence(
                kind="change",
                verdict=verdict,
                domain=domain,
                deviation=change,
                sentence=f"{domain} {_behind(worst, change)}",
            )
        )
    if level <= -LEVEL_FROM:
        latest = min(levels, key=lambda one: one.deviation)
        evidence.append(
            Evidence(
                kind="level",
                verdict=WATCH,
                domain=domain,
                deviation=level,
                sentence=f"{domain} is {-level:.1f} deviations below runs of this size and token count "
                f"({_seen(latest)})",
            )
        )
    shown = tuple(levels) if levels else tuple(worst)
    state = DomainState(
        domain=domain,
        verdict=gravest(one.verdict for one in evidence),
        change=change,
        level=level,
        tasks=shown,
    )
    return state, evidence


def _together(
    together: Sequence[Surprise], change: float, losses: Sequence[TaskCurve], loss_deviation: float, limit: str
) -> list[Evidence]:
    """Evidence of all tasks, and of tasks against loss."""
    evidence = []
    verdict = _verdict(change, limit)
    if verdict != HEALTHY:
        evidence.append(
            Evidence(
                kind="change",
                verdict=verdict,
                deviation=change,
                sentence=f"all tasks together {_behind(together, change)}",
            )
        )
    improving = bool(losses) and all(
        len(curve) > 1 and judged_value(curve)[-1] >= judged_value(curve)[-2] for curve in losses
    )
    if change <= -_FALLS_BEHIND_FROM and improving and loss_deviation > -1.0:
        evidence.append(
            Evidence(
                kind="divergence",
                verdict=WATCH,
                deviation=change,
                sentence=f"the loss improves as expected ({loss_deviation:+.1f}), the tasks do not ({change:+.1f}): "
                "look at what the data now holds, and at the prompts",
            )
        )
    return evidence


def _worst_window(changes: Sequence[Mapping[Series, Surprise | None]], curves: Sequence[TaskCurve]) -> list[Surprise]:
    """The surprises of the window in which these curves together are furthest below expectation.

    Args:
        changes: of each window, by series; None where nothing was to be expected.
        curves: those looked at together; a window counts if all of them have a surprise in it.
    """
    found: list[list[Surprise]] = []
    for by_series in changes:
        surprises = [by_series[curve.series] for curve in curves]
        known = [surprise for surprise in surprises if surprise is not None]
        if known and len(known) == len(curves):
            found.append(known)
    return min(found, key=pooled) if found else []


def _verdict(deviation: float, limit: str) -> str:
    if not deviation <= -WATCH_FROM:
        return HEALTHY
    return limit if deviation <= -ACT_FROM else WATCH


def _loss_evidence(surprises: Sequence[Surprise], deviation: float, limit: str) -> Evidence:
    return Evidence(
        kind="loss",
        verdict=_verdict(deviation, limit),
        domain=LOSS_DOMAIN,
        deviation=deviation,
        sentence=f"the loss {_behind(surprises, deviation)}",
    )


def _unchanged(table: CurveTable, run: str, tokens: float) -> list[Evidence]:
    """Scores that are the same to the last bit are scores of the same weights."""
    curves = [
        curve
        for curve in table.of_run(run)
        if curve.tokens_C[-1] == tokens and len(curve) > 1 and curve.tokens_C[-2] > 0
    ]
    moving = [curve for curve in curves if curve.domain != LOSS_DOMAIN]
    if len(moving) < _UNCHANGED_SERIES or any(curve.value_C[-1] != curve.value_C[-2] for curve in moving):
        return []
    sentence = (
        f"all {len(moving)} scores are exactly those of step {moving[0].step_C[-2]:,}: the weights have not changed. "
        "Look at the learning rate, at skipped steps, at which checkpoint was scored"
    )
    return [Evidence(kind="unchanged", verdict=ACT, sentence=sentence)]


def _learning_rate(table: CurveTable, run: str, tokens: float) -> list[Evidence]:
    curve = table.get(run, Series("train", "learning_rate"))
    total = table.runs[run].total_tokens
    if curve is None or curve.value_C[-1] > 0 or curve.tokens_C[-1] == 0 or (total and tokens >= 0.99 * total):
        return []
    return [Evidence(kind="learning rate", verdict=ACT, sentence="the learning rate is 0 before the end of the run")]


def _decay(table: CurveTable, run: str) -> list[Evidence]:
    found = decay_of(table, run)
    if not found.decays:
        return []
    how = "(their mean of three checkpoints fell from its best by more than their noise)"
    return [Evidence(kind="decay", verdict=WATCH, sentence=f"{found.reason} {how}")]


def _behind(surprises: Sequence[Surprise], deviation: float) -> str:
    furthest = min(surprises, key=lambda one: one.deviation)
    over = "the last checkpoint" if furthest.window == 1 else f"the last {furthest.window} checkpoints"
    return f"fell {-deviation:.1f} deviations below expectation over {over} (most of all {_seen(furthest)})"


def _seen(surprise: Surprise) -> str:
    return f"{surprise.series}: {surprise.seen:.4g}, expected {surprise.expected:.4g}"


def _why_not(table: CurveTable, run: str, series: Series) -> str:
    """Why a series that has left chance is not judged at the latest checkpoint."""
    curve = table.get(run, series)
    if curve is None or curve.tokens_C[-1] < table.last_tokens(run):
        return "not measured at the latest checkpoint"
    count = len(relevant(curve, table.runs[run].total_tokens))
    return (
        f"{count} checkpoint{'' if count == 1 else 's'} after the very first ones, where {FEWEST_CHECKPOINTS} are "
        "needed to hold a run against its own past"
    )


def _unknown_domains(
    table: CurveTable, run: str, left_out: Mapping[Series, str], known: Collection[str]
) -> list[DomainState]:
    """The domains of which no task is judged, with the reasons."""
    by_domain: dict[str, dict[Series, str]] = {}
    for one, reason in left_out.items():
        curve = table.get(run, one)
        if curve is not None and curve.domain not in known and curve.domain != LOSS_DOMAIN:
            by_domain.setdefault(curve.domain, {})[one] = reason
    return [
        DomainState(domain=domain, verdict=UNKNOWN, unknown=why_nothing(table, run, reasons))
        for domain, reasons in by_domain.items()
    ]


def _basis(expectation: Expectation, tokens: float) -> str:
    if not expectation.references:
        return "its own past"
    text = f"{len(expectation.references)} run(s) of {legible_count(int(expectation.smallest_parameters))} to "
    text += f"{legible_count(int(expectation.largest_parameters))} parameters"
    beyond = ", which this run is outside of in size or length: watched at most"
    return text if expectation.supports(tokens) else text + beyond
