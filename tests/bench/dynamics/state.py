"""What the state rule says of healthy runs, and whether it calls faults put into them.

Every run is held against the other sizes of its set (Pythia, 410M to 12B; the OLMo ladder), by the product's own
`assess` at every checkpoint. Faults are put into real curves after a checkpoint: the smooth course of the curve is
changed and its own checkpoint noise kept, so that nothing is called for being too regular.

- drop: every task loses a share of its score above chance;
- plateau: tasks and loss stay where they were; frozen: the very same scores, as the same weights give;
- regress: tasks go back the way they came, one checkpoint a checkpoint, while the loss improves as it did.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probes.dynamics.evidence import ACT, HEALTHY
from probes.dynamics.expectation import Expectation, expect
from probes.dynamics.noise import judged_value, unjudged_value
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.state import State, assess
from probes.dynamics.surface import relevant
from probes.dynamics.table import CurveTable, TaskCurve
from probes.dynamics.watched import is_loss, watched
from tests.bench.dynamics.sets import markdown, mean, sets, sizes, tokens_at

FAULTS = ("drop 5%", "drop 10%", "drop 20%", "plateau", "frozen", "regress")
_HORIZON = {"regress": 3}
_FIRST_STEP, _LAST_STEP = 23_000, 123_000
_PHASES = ((23_000, 43_000), (53_000, 83_000), (93_000, 123_000))
_LADDER = [f"{size}-{length}xC" for size in ("190M", "370M", "760M", "1B") for length in (1, 2, 5, 10)]
_LADDER_SHARES = tuple(tenth / 10 for tenth in range(1, 11))


def figures(*, quick: bool) -> dict[str, Any]:
    """False calls on healthy runs, and the share of faults called, by kind and by when they began."""
    healthy: list[tuple[str, State]] = []
    called: list[tuple[str, int, bool, bool, bool]] = []
    for position, (name, whole, _) in enumerate(sets()):
        if quick and position:
            break
        for run in sizes(whole):
            case = _case(whole, run)
            curve = max(case.curves, key=len)
            late = [int(step) for step in curve.step_C if step >= 3_000]
            healthy += [(f"{run}, {name}", case.state(whole, tokens_at(step))) for step in late]
            called += _faults(case)
    ladder = [] if quick else _healthy_ladder()
    return {
        "pythia": _calls(healthy),
        "ladder": _calls(ladder) if ladder else None,
        "faults": {fault: _called([c for c in called if c[0] == fault]) for fault in FAULTS},
        "faults_by_phase": {
            f"{first // 1000}k-{last // 1000}k": {
                fault: _called([c for c in called if c[0] == fault and first <= c[1] <= last]) for fault in FAULTS
            }
            for first, last in _PHASES
        },
        "small_sizes": _small_sizes(),
    }


def table(figures: Mapping[str, Any]) -> str:
    """One row for each fault."""
    rows = []
    for fault in FAULTS:
        found = figures["faults"][fault]
        phases = [f"{figures['faults_by_phase'][phase][fault]['called']:.2f}" for phase in figures["faults_by_phase"]]
        rows.append([fault, found["within"], f"{found['called']:.2f}", f"{found['act']:.2f}", *phases])
    head = ["fault", "checkpoints", "called", "called act", *(f"begun {p}" for p in figures["faults_by_phase"])]
    return markdown(head, rows)


@dataclass(frozen=True, slots=True)
class _Case:
    """A run, what is expected of it, and its curves."""

    run: str
    references: Sequence[str]
    expectation: Expectation
    facts: CurveTable
    curves: Sequence[TaskCurve]

    def state(self, table: CurveTable, tokens: float) -> State:
        own = CurveTable([self.facts.runs[self.run]], [c.until(tokens) for c in table if c.run == self.run])
        return assess(own, self.run, references=self.references, expectation=self.expectation)

    def state_of(self, curves: Sequence[TaskCurve]) -> State:
        own = CurveTable([self.facts.runs[self.run]], curves)
        return assess(own, self.run, references=self.references, expectation=self.expectation)


def _case(whole: CurveTable, run: str) -> _Case:
    others = [name for name in sizes(whole) if name != run]
    expectation = expect(whole, run, watched(whole, run, others), references=others)
    curves = [curve for curve in whole if curve.run == run]
    return _Case(run, others, expectation, whole, curves)


def _faults(case: _Case) -> list[tuple[str, int, bool, bool, bool]]:
    """(fault, step it begins after, called, called `act`, called from tasks alone) for every checkpoint and fault."""
    total = case.facts.runs[case.run].total_tokens
    parameters = case.facts.runs[case.run].parameters
    assert parameters is not None
    curves = [relevant(curve, total) for curve in case.curves if curve.series in case.expectation.surfaces]
    course = {
        curve.series: case.expectation.surfaces[curve.series]
        .with_run(curve, parameters=parameters)
        .predict(parameters=parameters, tokens_Q=curve.tokens_C, run=case.run)
        .mean_Q
        for curve in curves
    }
    steps = curves[0].step_C
    found = []
    for last in range(2, len(steps) - 1):
        if not _FIRST_STEP <= steps[last] <= _LAST_STEP:
            continue
        for fault in FAULTS:
            faulty = [_with_fault(curve, course[curve.series], fault, last) for curve in curves]
            states = [
                case.state_of([curve.where(np.arange(len(curve)) <= at) for curve in faulty])
                for at in range(last + 1, min(last + 1 + _HORIZON.get(fault, 2), len(steps)))
            ]
            by_tasks = any(
                evidence.kind in ("change", "divergence", "level", "decay")
                for state in states
                for evidence in state.evidence
            )
            called = any(state.verdict != HEALTHY for state in states)
            act = any(state.verdict == ACT for state in states)
            found.append((fault, int(steps[last]), called, act, by_tasks))
    return found


def _with_fault(curve: TaskCurve, course_C: np.ndarray, fault: str, last: int) -> TaskCurve:
    """The curve with a fault after its checkpoint number `last`."""
    after_C = np.arange(len(curve)) > last
    judged_C = judged_value(curve).copy()
    drop = re.fullmatch(r"drop (\d+)%", fault)
    if is_loss(curve) and fault not in ("plateau", "frozen"):
        return curve
    if drop:
        chance = curve.chance if np.isfinite(curve.chance) else 0.0
        judged_C -= after_C * float(drop[1]) / 100.0 * (course_C - chance)
    elif fault == "plateau":
        judged_C -= after_C * (course_C - course_C[last])
    elif fault == "frozen":
        judged_C[after_C] = judged_C[last]
    else:
        back_C = np.clip(2 * last - np.arange(len(curve)), 0, last)
        judged_C -= after_C * (course_C - course_C[back_C])
    return replace(curve, value_C=np.where(after_C, unjudged_value(curve, judged_C), curve.value_C))


def _healthy_ladder() -> list[tuple[str, State]]:
    """Bits per byte of thirteen tasks and C4's loss, at ten positions of each run, against the other sizes."""
    ladder = olmo_ladder()
    tests = {one.task for one in ladder.series() if "_test_" in one.task}
    whole = ladder.select(
        runs=_LADDER,
        keep=lambda c: (
            is_loss(c) or (c.metric == "bpb" and (c.task in tests or c.task.replace("_val_", "_test_") not in tests))
        ),
    )
    found = []
    for run in _LADDER:
        size = run.split("-")[0] + "-"
        others = [name for name in _LADDER if not name.startswith(size)]
        facts = replace(whole.runs[run], total_tokens=whole.last_tokens(run))
        table = CurveTable([*(f for f in whole.runs.values() if f.name != run), facts], whole.curves)
        expectation = expect(table, run, watched(table, run, others), references=others)
        for share in _LADDER_SHARES:
            known = table.until(run, share * table.last_tokens(run))
            found.append((f"{run}, ladder", assess(known, run, references=others, expectation=expectation)))
    return found


def _small_sizes() -> dict[str, dict[str, Any]]:
    """The first step at which 70M and 160M are at least `watch`, and on which tasks they decay; zero-shot sets."""
    found = {}
    for deduped in (False, True):
        whole = pythia(deduped=deduped, num_fewshot=0)
        others = sizes(whole)
        for run in [name for name in whole.by_size(whole.runs) if name not in others]:
            expectation = expect(whole, run, watched(whole, run, others), references=others)
            for step in range(13_000, 144_000, 10_000):
                known = whole.until(run, tokens_at(step))
                state = assess(known, run, references=others, expectation=expectation)
                decays = [evidence for evidence in state.evidence if evidence.kind == "decay"]
                if decays:
                    found[run] = {"step": step, "verdict": state.verdict, "evidence": decays[0].sentence}
                    break
    return found


def _calls(states: Sequence[tuple[str, State]]) -> dict[str, Any]:
    verdicts = Counter(state.verdict for _, state in states)
    kinds = Counter(evidence.kind for _, state in states for evidence in state.evidence)
    deviations = [state.change for _, state in states if np.isfinite(state.change)]
    return {
        "states": len(states),
        "verdicts": dict(verdicts),
        "runs_called_act": sorted({name for name, state in states if state.verdict == ACT}),
        "share_called_watch": verdicts["watch"] / len(states),
        "evidence": dict(kinds),
        "lowest_change_of_all_tasks": min(deviations) if deviations else None,
    }


def _called(cases: Sequence[tuple[str, int, bool, bool, bool]]) -> dict[str, Any]:
    if not cases:
        return {"cases": 0, "within": 0, "called": float("nan"), "act": float("nan"), "from_tasks_alone": float("nan")}
    return {
        "cases": len(cases),
        "within": _HORIZON.get(cases[0][0], 2),
        "called": mean([float(case[2]) for case in cases]),
        "act": mean([float(case[3]) for case in cases]),
        "from_tasks_alone": mean([float(case[4]) for case in cases]),
    }
