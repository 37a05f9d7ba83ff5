"""Says at every save whether the run is healthy: an event, a line on the console, and numbers in the views.

`act` is also a warning: a line on stderr, and an alert in W&B. `unknown`, where nothing could be judged, is none: the
console says it once, when it begins, with the reason.

Rank 0 alone reads the run's own record and judges it by `probes.dynamics.state`; no rank waits for another, and nothing
that goes wrong here reaches training.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.track import names
from probes.dynamics.evidence import ACT, UNKNOWN, VERDICT_NUMBERS

if TYPE_CHECKING:
    from pretrain.hooks.base import Run, StepReport
    from probes.dynamics.expectation import Expectation
    from probes.dynamics.references import References
    from probes.dynamics.state import State

STATE_EVENT = "state"


class StateHook:
    """Implements `pretrain.hooks.base.Hook`; comes after the hook that scores.

    Args:
        references: paths of runs to hold this one against (`probe.references`); none holds it against its own past.
    """

    def __init__(self, references: Sequence[str]) -> None:
        self._paths = list(references)
        self._further: References | None = None
        self._expectation: Expectation | None = None
        self._said: set[int] = set()
        self._unknown_since: int | None = None

    def on_start(self, run: Run) -> None:
        """Finds out of which steps something has been said before, and since when nothing can be judged."""
        if run.job.rank == 0:
            self._said, self._unknown_since = _said_before(run.info.directory / "events.jsonl")

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing: scores come at saves."""

    def on_save(self, run: Run) -> None:
        """Judges the run as far as its record goes, once a save."""
        step = run.state.step
        if run.job.rank != 0 or step in self._said or not run.calendar.is_due(step):
            return
        self._said.add(step)
        start = time.perf_counter()
        try:
            state = self._assess(run)
        except Exception as error:  # noqa: BLE001 – a verdict that cannot be made is an event; training needs none
            run.tracker.event("state_failed", step=step, cause=f"{type(error).__name__}: {error}")
            return
        fields = event_fields(state) | {"seconds": time.perf_counter() - start}
        since = step if self._unknown_since is None else self._unknown_since
        self._unknown_since = since if state.verdict == UNKNOWN else None
        if state.verdict == UNKNOWN:
            fields["unknown_since"] = since
        if state.verdict == ACT:
            run.tracker.warn(
                STATE_EVENT, f"The state of the run at step {step:,} is {state.summary}", step=step, **fields
            )
        else:
            run.tracker.event(STATE_EVENT, step=step, **fields)
        run.tracker.log_views(view_values(state), step=step, tokens=run.state.tokens)

    def on_end(self, run: Run) -> None:
        """Nothing: the last save has been judged."""

    def _assess(self, run: Run) -> State:
        """The state as far as the run's record goes; `unknown` while nothing can be judged."""
        from probes.dynamics.expectation import expect
        from probes.dynamics.match_shots import match_shots
        from probes.dynamics.read_run import read_run_curves
        from probes.dynamics.references import read_references
        from probes.dynamics.state import assess
        from probes.dynamics.table import CurveTable
        from probes.dynamics.watched import watched

        own = read_run_curves(run.info.directory)
        name = own.facts.name
        table = CurveTable([own.facts], own.curves)
        references: list[str] = []
        if self._paths:
            if self._further is None:
                self._further = read_references(CurveTable([], []), self._paths)
                run.tracker.event(
                    "state_references",
                    step=run.state.step,
                    used=self._further.names,
                    left_out=self._further.left_out,
                    **({"notes": list(self._further.notes)} if self._further.notes else {}),
                )
            # Not a run of the same name: its curves would be taken for this one's.
            further = self._further.table.select(runs=[other for other in self._further.table.runs if other != name])
            references = [other for other in self._further.names if other != name]
            table = match_shots(CurveTable([*further.runs.values(), own.facts], [*further.curves, *own.curves]))
        expectation = None
        if references:
            wanted = watched(table, name, references)
            expectation = self._expectation
            if expectation is None or not set(wanted) <= expectation.asked:
                expectation = expect(table, name, wanted, references=references)
            # What is learnt of the run's own past is only true now.
            self._expectation = expectation if expectation.references else None
        return assess(table, name, references=references, expectation=expectation)


def event_fields(state: State) -> dict[str, Any]:
    """A state as plain JSON values; what is not a number is null."""
    return {
        "verdict": state.verdict,
        "reason": state.summary.split(": ", 1)[1],
        "basis": state.basis,
        **({"no_references": dict(state.no_references)} if state.no_references else {}),
        "change": _known(state.change),
        "domains": {
            domain.domain: {
                "verdict": domain.verdict,
                "change": _known(domain.change),
                "level": _known(domain.level),
                **({"unknown": domain.unknown} if domain.unknown else {}),
            }
            for domain in state.domains
        },
        "evidence": [
            {"kind": one.kind, "verdict": one.verdict, "domain": one.domain, "sentence": one.sentence}
            for one in state.evidence
        ],
    }


def view_values(state: State) -> dict[str, float]:
    """What the views draw: the verdict as 0, 1 or 2 (-1 where nothing was judged), and deviations by domain."""
    values = {names.STATE_VERDICT: float(VERDICT_NUMBERS[state.verdict]), names.state_figure("change"): state.change}
    for domain in state.domains:
        values[names.state_figure("change", domain=domain.domain)] = domain.change
        values[names.state_figure("level", domain=domain.domain)] = domain.level
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _said_before(path: Path) -> tuple[set[int], int | None]:
    """Steps of the run's state events, and since when the last ones are unknown; a torn last line is passed over."""
    found: set[int] = set()
    unknown_since = None
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if f'"{STATE_EVENT}"' in line:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if row.get("kind") == STATE_EVENT and isinstance(row.get("step"), int):
                    found.add(row["step"])
                    unknown_since = row.get("unknown_since")
    return found, unknown_since
