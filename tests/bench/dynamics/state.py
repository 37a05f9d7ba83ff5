"""What the verdicts say of healthy runs, and whether they notice faults: `act`, `watch`, how many checkpoints later.

Runs, and the three ways in which each is held to something, are in `modes`; the faults are in `faults`. Verdicts are
those of the product's own `assess`, made anew at every checkpoint of a table that ends there. What settings were chosen
on and what was held out are reported apart.

- A healthy check is one verdict on a healthy run. `unknown` is counted apart: nothing was judged.
- Falls are put after one of three fixed shares of each run, each other fault after one of two shares of every third
  run, in turn, wherever the healthy run was judged. Verdicts are asked 1, 2, 3, 5, 7 and 10 checkpoints later, as
  far as the run goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.dynamics.evidence import ACT, UNKNOWN, WATCH
from probes.dynamics.published import pythia
from probes.dynamics.state import assess
from tests.bench.dynamics.faults import FALLS, OTHERS, Fault, Place, place_at
from tests.bench.dynamics.modes import MODES, Case, Check, all_cases, healthy_checks
from tests.bench.dynamics.remember import remembered
from tests.bench.dynamics.sets import markdown, mean, sizes, tokens_at

FAULTS = (*FALLS, *OTHERS)
_FALL_SHARES, _OTHER_SHARES = (0.3, 0.6, 0.85), (0.3, 0.6)
_OTHERS_EVERY = 3
"""Runs: so often one of the other faults is put into a run."""
_DELAYS = (1, 2, 3, 5, 7, 10)

_GROUPS = {"held_out": "held out", "chosen_on": "chosen on"}


@dataclass(frozen=True, slots=True)
class Found:
    """When a fault was noticed.

    Attributes:
        case: the run.
        mode: what it was held against.
        fault: which.
        after: tokens of the last healthy checkpoint.
        act: checkpoints until the first `act` that was seen; infinite if there was none.
        noticed: checkpoints until the first `watch` or `act`.
    """

    case: Case
    mode: str
    fault: Fault
    after: float
    act: float
    noticed: float


def figures(*, quick: bool) -> dict[str, Any]:
    """Verdicts on healthy runs and on faults by mode, for what was held out and what settings were chosen on."""
    return figures_of(all_cases(quick=quick)) | {"small_sizes": _small_sizes()}


def figures_of(cases: Sequence[Case]) -> dict[str, Any]:
    """The figures of these runs, by what settings were chosen on."""
    checks: list[Check] = []
    found: list[Found] = []
    for number, case in enumerate(cases):
        with remembered():
            checks += healthy_checks([case])
            found += faults_of(case, number)
    return summary(checks, found)


def summary(checks: Sequence[Check], found: Sequence[Found]) -> dict[str, Any]:
    """Counts and shares of verdicts, by what settings were chosen on."""
    result = {}
    for group in _GROUPS:
        chosen = group == "chosen_on"
        of_group = [check for check in checks if check.case.chosen_on == chosen]
        faults = [one for one in found if one.case.chosen_on == chosen]
        if of_group:
            result[group] = {
                "healthy": {mode: _calls([c for c in of_group if c.mode == mode]) for mode in MODES},
                "faults": {
                    fault.name: {
                        mode: _noticed([f for f in faults if f.mode == mode and f.fault.name == fault.name])
                        for mode in MODES
                    }
                    for fault in FAULTS
                },
            }
    return result


def table(figures: Mapping[str, Any]) -> str:
    """Healthy checks, then one row a fault; held out before chosen on."""
    parts = [_healthy_table(figures)]
    for group, words in _GROUPS.items():
        if group in figures:
            parts.append(f"Faults, {words} (three figures: other sizes, smaller siblings, own past):")
            parts.append(_fault_table(figures[group]["faults"]))
    return "\n\n".join(parts)


def faults_of(case: Case, number: int, *, modes: Sequence[str] = MODES) -> Iterator[Found]:
    """Puts every fault into a run, in every mode; `number` turns through tasks, domains and places."""
    for mode in modes:
        if case.references(mode) is None:
            continue
        shares = sorted({*_FALL_SHARES, *_OTHER_SHARES})
        judged = [share for share in shares if case.state(mode, checkpoint_at(case, mode, share)).verdict != UNKNOWN]
        for index, fault in enumerate(FAULTS):
            if fault.is_fall:
                possible = [share for share in _turned(_FALL_SHARES, number) if share in judged][:1]
            elif (number + index) % _OTHERS_EVERY == 0:
                possible = [share for share in _turned(_OTHER_SHARES, number // _OTHERS_EVERY) if share in judged][:1]
            else:
                possible = []
            for share in possible:
                place = place_at(case.curves, checkpoint_at(case, mode, share), number)
                if place is not None:
                    yield _follow(case, mode, fault, place)


def checkpoint_at(case: Case, mode: str, share: float) -> float:
    """Tokens of the last checkpoint before a share of what the run was looked at."""
    first, last = case.checks[mode][0], case.checkpoints[-1]
    return float(case.checkpoints[case.checkpoints <= first + share * (last - first)][-1])


def _turned(shares: Sequence[float], number: int) -> list[float]:
    return [shares[(number + turn) % len(shares)] for turn in range(len(shares))]


def _follow(case: Case, mode: str, fault: Fault, place: Place) -> Found:
    """Asks for verdicts after a fault until it is plain when it was noticed."""
    curves = fault.inject(case.curves, place)
    tokens = np.unique(np.concatenate([curve.tokens_C for curve in curves]))
    later = tokens[tokens > place.after * (1 + 1e-9)]
    act = noticed = np.inf
    for delay in _DELAYS:
        if delay > len(later) or (delay > 2 and (act if fault.is_fall else noticed) <= delay):
            break
        verdict = case.state(mode, float(later[delay - 1]), curves).verdict
        act = min(act, delay if verdict == ACT else np.inf)
        noticed = min(noticed, delay if verdict in (WATCH, ACT) else np.inf)
    return Found(case, mode, fault, place.after, act, noticed)


def _calls(checks: Sequence[Check]) -> dict[str, Any]:
    """Verdicts on healthy runs, with what called for them and of which runs."""
    verdicts = Counter(check.state.verdict for check in checks)
    judged = len(checks) - verdicts[UNKNOWN]
    kinds = Counter(evidence.kind for check in checks for evidence in check.state.evidence)
    called = [check for check in checks if check.state.verdict in (WATCH, ACT)]
    return {
        "checks": len(checks),
        "judged": judged,
        "verdicts": dict(verdicts),
        "act": verdicts[ACT],
        "share_watch": verdicts[WATCH] / judged if judged else None,
        "evidence": dict(kinds),
        "by_source": {
            source: dict(Counter(check.state.verdict for check in checks if check.case.source == source))
            for source in dict.fromkeys(check.case.source for check in checks)
        },
        "act_on": sorted({f"{c.case.source}, {c.case.run}" for c in called if c.state.verdict == ACT}),
    }


def _noticed(found: Sequence[Found]) -> dict[str, Any]:
    """Shares noticed, and the median delay; None where more than half were never noticed."""
    if not found:
        return {"cases": 0}
    delay = float(np.median([one.noticed for one in found]))
    return {
        "cases": len(found),
        "act_within_2": mean([float(one.act <= 2) for one in found]),
        "act_within_10": mean([float(one.act <= 10) for one in found]),
        "noticed_within_2": mean([float(one.noticed <= 2) for one in found]),
        "noticed_within_10": mean([float(one.noticed <= 10) for one in found]),
        "median_delay": delay if np.isfinite(delay) else None,
    }


def _healthy_table(figures: Mapping[str, Any]) -> str:
    rows = []
    for group, words in _GROUPS.items():
        for mode in MODES if group in figures else ():
            of = figures[group]["healthy"][mode]
            unknown = of["checks"] - of["judged"]
            share = of["share_watch"]
            rows.append(
                [f"{words}, {mode}", of["judged"], of["act"], "–" if share is None else f"{share:.1%}", unknown]
            )
    return markdown(["healthy runs", "judged", "act", "watch", "unknown besides"], rows)


def _fault_table(faults: Mapping[str, Any]) -> str:
    def three(of: Mapping[str, Any], name: str, form: str) -> str:
        cells = []
        for mode in MODES:
            value = of[mode].get(name)
            missing = "never" if of[mode]["cases"] and name == "median_delay" else "–"
            cells.append(missing if value is None else format(value, form))
        return ", ".join(cells)

    columns = (
        ("cases", "d"),
        ("act_within_2", ".2f"),
        ("noticed_within_2", ".2f"),
        ("noticed_within_10", ".2f"),
        ("median_delay", "g"),
    )
    rows = [[fault, *(three(of, name, form) for name, form in columns)] for fault, of in faults.items()]
    head = ["fault", "cases", "`act` within 2", "noticed within 2", "within 10", "median delay"]
    return markdown(head, rows)


def _small_sizes() -> dict[str, dict[str, Any]]:
    """The first step at which 70M and 160M are at least `watch`, and on which tasks they decay; zero-shot sets."""
    found = {}
    for deduped in (False, True):
        whole = pythia(deduped=deduped, num_fewshot=0)
        others = sizes(whole)
        for run in [name for name in whole.by_size(whole.runs) if name not in others]:
            for step in range(13_000, 144_000, 10_000):
                state = assess(whole.until(run, tokens_at(step)), run, references=others)
                decays = [evidence for evidence in state.evidence if evidence.kind == "decay"]
                if decays:
                    found[run] = {"step": step, "verdict": state.verdict, "evidence": decays[0].sentence}
                    break
    return found
