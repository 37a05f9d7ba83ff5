"""Runs of which verdicts are asked, in the three ways that a run can be held to something, by the product's `assess`.

- `around`: other sizes of its set, larger ones too, as `--references` gives them;
- `siblings`: finished smaller runs of its family alone, which the product finds by itself (`family_references`);
- `own past`: no other runs.

Each run is left out of what it is held against. The settings of the rules were chosen on Pythia's standard sets and on
the ladder's runs of one and two times Chinchilla's tokens; the others are held out. Pythia's 70M and 160M are no
healthy runs, since their scores decay: the benchmark lists them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from probes.dynamics.published import olmo_ladder, pythia, pythia_batch_sizes, pythia_interventions
from probes.dynamics.references import family_references
from probes.dynamics.state import State, assess
from probes.dynamics.table import CurveTable, TaskCurve
from probes.dynamics.trust import is_ability
from probes.dynamics.watched import is_loss
from tests.bench.dynamics.sets import SETS, sizes

MODES = ("around", "siblings", "own past")
_FIRST_SHARE = 0.02
"""Of a run: its healthy checkpoints are looked at from there on (Pythia's step 3,000)."""
_SMALLEST = 1.5e8
"""Parameters without embeddings: the ladder's 190M are more, Pythia's 160M are fewer."""
_LADDER_SIZES, _LADDER_PAIRS = ("190M", "370M", "760M", "1B"), ((1, 2), (5, 10))
_LADDER_CHECKS = {"around": 10, "siblings": 18, "own past": 20}
"""Of a run of the ladder, evenly over its tokens: it has 37 to 163 checkpoints. Each mode has 600 checks in all."""


@dataclass(frozen=True)
class Case:
    """A healthy run, with everything that is known of others.

    Attributes:
        source: the set it is from.
        chosen_on: whether settings were chosen on the set.
        run: its name.
        table: its curves to the end, and other runs.
        others: runs of other sizes of its set.
        checks: tokens of the checkpoints at which its state is asked, by mode.
    """

    source: str
    chosen_on: bool
    run: str
    table: CurveTable
    others: tuple[str, ...]
    checks: Mapping[str, tuple[float, ...]]

    @cached_property
    def curves(self) -> list[TaskCurve]:
        """The run's own."""
        return self.table.of_run(self.run)

    @cached_property
    def checkpoints(self) -> np.ndarray:
        """Tokens of all its checkpoints, float64."""
        return np.unique(np.concatenate([curve.tokens_C for curve in self.curves]))

    @cached_property
    def _siblings(self) -> list[str]:
        return family_references(self.table, self.run).names

    def references(self, mode: str) -> list[str] | None:
        """What the run is held against; None if the mode has nothing for it."""
        if mode == "own past":
            return []
        found = list(self.others) if mode == "around" else self._siblings
        return found or None

    def state(self, mode: str, tokens: float, curves: Sequence[TaskCurve] | None = None) -> State:
        """The verdict at a checkpoint; `curves` stand in for the run's own."""
        references = self.references(mode) or []
        own = [curve.until(tokens) for curve in (self.curves if curves is None else curves)]
        theirs = [curve for name in references for curve in self.table.of_run(name)]
        facts = [self.table.runs[name] for name in (*references, self.run)]
        return assess(CurveTable(facts, [*theirs, *(c for c in own if len(c))]), self.run, references=references)


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict on a healthy run."""

    case: Case
    mode: str
    tokens: float
    state: State


def healthy_checks(cases: Sequence[Case], modes: Sequence[str] = MODES) -> Iterator[Check]:
    """The verdicts on healthy runs, one by one."""
    for case in cases:
        for mode in modes:
            if case.references(mode) is not None:
                for tokens in case.checks[mode]:
                    yield Check(case, mode, tokens, case.state(mode, tokens))


def all_cases(*, quick: bool = False) -> list[Case]:
    """Pythia's four sets, its interventions and batch sizes, and the ladder; when quick one set, half the ladder."""
    if quick:
        return [*pythia_cases(*SETS[0]), *ladder_cases(_LADDER_PAIRS[:1])]
    found = [case for deduped, shots in SETS for case in pythia_cases(deduped, shots)]
    return [*found, *intervention_cases(), *batch_size_cases(), *ladder_cases()]


def pythia_cases(deduped: bool, num_fewshot: int) -> list[Case]:
    """The sizes from 410M on of one set, with all its tasks."""
    name = f"Pythia {'deduped' if deduped else 'standard'}, {num_fewshot}-shot"
    return cases_of(pythia(deduped=deduped, num_fewshot=num_fewshot), source=name, chosen_on=not deduped)


def cases_of(table: CurveTable, *, source: str, chosen_on: bool) -> list[Case]:
    """Every size from 410M on of a table whose runs are of one family, among the others; measures of bias left out."""
    table = table.select(keep=is_ability)
    return [_case(table, run, source=source, chosen_on=chosen_on) for run in sizes(table)]


def intervention_cases() -> list[Case]:
    """Interventions and baselines of 410M and more that have any ability measured, among deduplicated Pythia runs."""
    return _among(pythia_interventions(), pythia(deduped=True, num_fewshot=0), source="Pythia interventions")


def batch_size_cases() -> list[Case]:
    """Pythia's batch sizes from 410M on, among standard Pythia runs."""
    return _among(pythia_batch_sizes(), pythia(deduped=False, num_fewshot=5), source="Pythia batch sizes")


def ladder_cases(pairs: Sequence[tuple[int, int]] = _LADDER_PAIRS) -> list[Case]:
    """Bits per byte of nine tasks and C4's loss; of a task's two splits the test's.

    Runs of one and two times Chinchilla's tokens are held against each other, and those of five and ten times are, so
    that what was held out never meets what settings were chosen on.
    """
    whole = olmo_ladder()
    tests = {one.task for one in whole.series() if "_test_" in one.task}

    def wanted(curve: TaskCurve) -> bool:
        only = curve.task in tests or curve.task.replace("_val_", "_test_") not in tests
        return is_loss(curve) or (curve.metric == "bpb" and only and not curve.task.startswith("mmlu"))

    found = []
    for pair in pairs:
        names = [f"{size}-{length}xC" for size in _LADDER_SIZES for length in pair]
        table = whole.select(runs=names, keep=wanted)
        planned = [replace(facts, total_tokens=table.last_tokens(facts.name)) for facts in table.runs.values()]
        table = CurveTable(planned, table.curves)
        source = f"ladder {pair[0]}xC and {pair[1]}xC"
        found += [_case(table, run, source=source, chosen_on=pair[0] == 1, checks=_LADDER_CHECKS) for run in names]
    return found


def _among(branches: CurveTable, originals: CurveTable, *, source: str) -> list[Case]:
    found = []
    branches, originals = branches.select(keep=is_ability), originals.select(keep=is_ability)
    for run in sizes(branches):
        curves = branches.of_run(run)
        if any(curve.metric == "acc" for curve in curves):
            table = CurveTable([branches.runs[run], *originals.runs.values()], [*curves, *originals])
            found.append(_case(table, run, source=source, chosen_on=False))
    return found


def _case(
    table: CurveTable, run: str, *, source: str, chosen_on: bool, checks: Mapping[str, int] | None = None
) -> Case:
    parameters = table.runs[run].parameters
    others = [name for name in sizes(table, above=_SMALLEST) if table.runs[name].parameters != parameters]
    total = table.runs[run].total_tokens or table.last_tokens(run)
    every = np.unique(np.concatenate([curve.tokens_C for curve in table.of_run(run)]))
    asked = {}
    for mode in MODES:
        chosen = every[every >= _FIRST_SHARE * total]
        if checks is not None:
            wanted = np.arange(1, checks[mode] + 1) / checks[mode] * every[-1]
            chosen = np.unique(every[np.abs(every[:, None] - wanted).argmin(axis=0)])
        asked[mode] = tuple(map(float, chosen))
    return Case(source, chosen_on, run, table, tuple(others), asked)
