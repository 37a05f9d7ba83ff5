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
from probes.dynamics.expectation import Expectation, Surprise, expect, pooled
from probes.dynamics.falls import FEWEST_BEFORE, Fall, falls_of, joint_fall, task_falls
from probes.dynamics.oddities import counting, jump, louder, swapped
from probes.dynamics.references import References, family_references
from probes.dynamics.standstill import no_learning_rate, unchanged
from probes.dynamics.surprises import Changes, Windows, divergence, fell_behind, low_level, lowest
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, TaskCurve
from probes.dynamics.watched import watch_list, why_nothing

_EARLY_SHARE = 0.15
"""Of a run: before that, warm-up and the first steep rise differ between recipes, and no deviation from expectation is
called `act`."""


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
    watch = watch_list(table, run, chosen)
    if expectation is None:
        expectation = expect(table, run, watch.series, references=chosen)
    look = _look(table, run, watch.series, expectation)
    left_out = watch.left_out | {one: _why_not(look, one) for one in watch.series if one not in look.judged}
    evidence = [*_of_run(look)]
    domains = []
    for domain in dict.fromkeys(curve.domain for curve in look.tasks if curve.series in look.judged):
        state, found = _of_domain(look, domain)
        domains.append(state)
        evidence += found
    domains += _unknown_domains(look, left_out, {state.domain for state in domains})
    evidence.sort(key=lambda one: -VERDICTS.index(one.verdict))
    return State(
        run=run,
        step=max((int(curve.step_C[-1]) for curve in table.of_run(run)), default=-1),
        tokens=look.tokens,
        verdict=gravest((one.verdict for one in evidence), default=HEALTHY if look.judged else UNKNOWN),
        basis=_basis(expectation, look.tokens, asked=bool(chosen)),
        domains=tuple(domains),
        evidence=tuple(evidence),
        change=pooled(lowest(look.windows(look.tasks))),
        unknown="" if look.judged else why_nothing(table, run, left_out),
        no_references=held.left_out,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """What is looked at in one run at its latest checkpoint, by every rule.

    Attributes:
        table: has the run.
        run: its name.
        tokens: of the checkpoint.
        expectation: of the run.
        tasks: curves of the watched tasks that were measured there.
        losses: the same of losses.
        changes: deviations from expectation.
        falls: what is gone of what they had.
        levels: deviations from runs of this size and token count, by series; where the references support it.
    """

    table: CurveTable
    run: str
    tokens: float
    expectation: Expectation
    tasks: Sequence[TaskCurve]
    losses: Sequence[TaskCurve]
    changes: Changes
    falls: Sequence[Fall]
    levels: Mapping[Series, Surprise]

    @property
    def judged(self) -> set[Series]:
        """The series of which any rule can say anything."""
        return self.changes.judged() | {fall.series for fall in self.falls} | set(self.levels)

    @property
    def early(self) -> bool:
        """Whether the run is so young that no deviation from expectation is called `act`."""
        total = self.table.runs[self.run].total_tokens
        return total is not None and self.tokens < _EARLY_SHARE * total

    def windows(self, curves: Sequence[TaskCurve]) -> Windows:
        """The surprises of these curves together."""
        return self.changes.of([curve for curve in curves if curve.series in self.expectation.surfaces])

    def behind(self, windows: Windows, *, domain: str = "") -> list[Evidence]:
        """What lies below expectation, by the thresholds that hold here."""
        series = {surprise.series for surprises in windows for surprise in surprises}
        falls = [fall for fall in self.falls if fall.series in series]
        return fell_behind(
            windows,
            limit=WATCH if self.early else ACT,
            alone=not self.expectation.references,
            fell=bool(joint_fall(falls) or task_falls(falls)),
            domain=domain,
        )


def _look(table: CurveTable, run: str, watched: Sequence[Series], expectation: Expectation) -> _Look:
    tokens = table.last_tokens(run)
    wanted = dict.fromkeys([*expectation.surfaces, *watched])
    curves = [curve for one in wanted if (curve := table.get(run, one)) is not None and curve.tokens_C[-1] == tokens]
    tasks = [curve for curve in curves if curve.domain != LOSS_DOMAIN]
    supported = tasks if expectation.supports(tokens) else []
    return _Look(
        table=table,
        run=run,
        tokens=tokens,
        expectation=expectation,
        tasks=tasks,
        losses=[curve for curve in curves if curve.domain == LOSS_DOMAIN],
        changes=Changes(expectation, curves, total_tokens=table.runs[run].total_tokens),
        falls=falls_of(table, run, curves),
        levels={c.series: level for c in supported if (level := expectation.level(c)) is not None},
    )


def _of_run(look: _Look) -> list[Evidence]:
    """What concerns the run, a single task, or the losses."""
    tasks, losses = look.windows(look.tasks), look.windows(look.losses)
    several = len({curve.domain for curve in look.tasks}) > 1
    return [
        *unchanged(look.table, look.run, look.tokens),
        *no_learning_rate(look.table, look.run, look.tokens),
        *(joint_fall([fall for fall in look.falls if fall.domain != LOSS_DOMAIN]) if several else []),
        *task_falls(look.falls),
        *(look.behind(tasks) if several else []),
        *look.behind(losses, domain=LOSS_DOMAIN),
        *divergence(pooled(lowest(tasks)), look.losses, pooled(lowest(losses))),
        *_decay(look.table, look.run),
        *louder(look.tasks, total_tokens=look.table.runs[look.run].total_tokens),
        *swapped(look.tasks),
        *counting(look.table, look.run),
    ]


def _of_domain(look: _Look, domain: str) -> tuple[DomainState, list[Evidence]]:
    curves = [curve for curve in look.tasks if curve.domain == domain]
    windows = look.windows(curves)
    levels = [look.levels[curve.series] for curve in curves if curve.series in look.levels]
    evidence = [
        *joint_fall([fall for fall in look.falls if fall.domain == domain], domain=domain),
        *look.behind(windows, domain=domain),
        *low_level(domain, levels),
        *([] if look.early else jump(domain, windows)),
    ]
    of_tasks = [one.verdict for one in task_falls(look.falls) if one.domain == domain]
    state = DomainState(
        domain=domain,
        verdict=gravest([*of_tasks, *(one.verdict for one in evidence)]),
        change=pooled(lowest(windows)),
        level=pooled(levels),
        tasks=tuple(levels or lowest(windows)),
    )
    return state, evidence


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


def _decay(table: CurveTable, run: str) -> list[Evidence]:
    found = decay_of(table, run)
    if not found.decays:
        return []
    how = "(their mean of three checkpoints fell from its best by more than their noise)"
    return [Evidence(kind="decay", verdict=WATCH, sentence=f"{found.reason} {how}")]


def _why_not(look: _Look, series: Series) -> str:
    """Why a series that is watched is not judged at the latest checkpoint."""
    curve = look.table.get(look.run, series)
    if curve is None or curve.tokens_C[-1] < look.tokens:
        return "not measured at the latest checkpoint"
    count = len(curve.since_step(curve.first_steps(look.table.runs[look.run].total_tokens)))
    if count > FEWEST_BEFORE:
        return f"no rise above chance or its first scores by more than noise in {count} checkpoints"
    several = f"{count} checkpoint{'' if count == 1 else 's'} after the very first ones"
    return f"{several}, where {FEWEST_BEFORE + 1} are needed to hold a run against its own past"


def _unknown_domains(look: _Look, left_out: Mapping[Series, str], known: Collection[str]) -> list[DomainState]:
    """The domains of which no task is judged, with the reasons."""
    by_domain: dict[str, dict[Series, str]] = {}
    for one, reason in left_out.items():
        curve = look.table.get(look.run, one)
        if curve is not None and curve.domain not in known and curve.domain != LOSS_DOMAIN:
            by_domain.setdefault(curve.domain, {})[one] = reason
    return [
        DomainState(domain=domain, verdict=UNKNOWN, unknown=why_nothing(look.table, look.run, reasons))
        for domain, reasons in by_domain.items()
    ]


def _basis(expectation: Expectation, tokens: float, *, asked: bool) -> str:
    if not expectation.references:
        return "its own past" + (", since no reference of known size has measured the same" if asked else "")
    text = f"{len(expectation.references)} run(s) of {legible_count(int(expectation.smallest_parameters))} to "
    text += f"{legible_count(int(expectation.largest_parameters))} parameters"
    beyond = " (it is outside of them in size or length) and its own past"
    return text if expectation.supports(tokens) else text + beyond
