"""The order in which the loop gives steps to an engine, reads their results and tells the hooks."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.config.run import RunConfig, TrainSection
from pretrain.engine.base import Batch, PendingStep, StepResult
from pretrain.hooks.base import Run, StepReport
from pretrain.loop import fit
from pretrain.state import RunState

STEPS = 6


class Device:
    """An engine that notes what it was given and when somebody read it; nothing else of an engine is asked."""

    def __init__(self, said: list[str], *, late: bool) -> None:
        self._said, self._late, self._given = said, late, 0

    def train_step(self, batch: Batch, learning_rate: float, *, observe: bool = False) -> PendingStep:
        self._given += 1
        step = self._given
        self._said.append(f"give {step}" + (" observed" if observe else ""))

        def read() -> StepResult:
            self._said.append(f"read {step}")
            return StepResult(loss=float(step), tokens=20, grad_norm=1.0)

        return PendingStep(tokens=20, result=read, late=self._late)


class Listener:
    """A hook that notes what it is told, with the position it sees."""

    def __init__(self, said: list[str], *, stop_after: int | None, observed: int | None) -> None:
        self._said, self._stop_after, self._observed = said, stop_after, observed
        self.reports: list[StepReport] = []

    def on_start(self, run: Run) -> None:
        run.is_observed = lambda step: step == self._observed

    def on_step(self, run: Run, report: StepReport) -> None:
        assert report.state.step == report.result.loss
        self.reports.append(report)
        self._said.append(f"tell {report.state.step}")
        run.stopping = run.stopping or report.state.step == self._stop_after

    def on_save(self, run: Run) -> None:
        self._said.append(f"save {run.state.step}")

    def on_end(self, run: Run) -> None:
        self._said.append("end")


def batches() -> Iterator[Batch]:
    for number in range(100):
        tokens = np.zeros((1, 2, 11), np.int32)
        yield Batch(tokens, first_sample=2 * number, num_samples=2, source_tokens={"web": 15, "code": 5})


def told(
    *, late: bool, saves: tuple[int, ...] = (), stop_after: int | None = None, observed: int | None = None
) -> tuple[list[str], list[StepReport], Run]:
    said: list[str] = []
    config = RunConfig(train=TrainSection(steps=STEPS, global_batch_size=2, sequence_length=10))
    listener = Listener(said, stop_after=stop_after, observed=observed)
    run: Any = Run(
        config=config,
        state=RunState(seed=0),
        engine=Device(said, late=late),  # type: ignore[arg-type]
        tracker=None,  # type: ignore[arg-type]
        info=SimpleNamespace(total_steps=STEPS),  # type: ignore[arg-type]
        job=None,  # type: ignore[arg-type]
        checkpoints=None,  # type: ignore[arg-type]
        calendar=SimpleNamespace(is_due=lambda step: step in saves),  # type: ignore[arg-type]
    )
    fit(run, batches(), [listener])
    return said, listener.reports, run


def test_a_step_that_is_done_is_told_before_the_next_is_given() -> None:
    said, _, _ = told(late=False)
    assert said == [f"{what} {step}" for step in range(1, STEPS + 1) for what in ("give", "read", "tell")] + ["end"]


def test_a_device_has_its_next_step_before_the_last_is_read() -> None:
    said, _, _ = told(late=True)
    assert said == [
        *("give 1", "give 2", "read 1", "tell 1", "give 3", "read 2", "tell 2", "give 4", "read 3", "tell 3"),
        *("give 5", "read 4", "tell 4", "give 6", "read 5", "tell 5", "read 6", "tell 6", "end"),
    ]


def test_at_a_save_nothing_is_under_way() -> None:
    said, _, _ = told(late=True, saves=(0, 3))
    assert said[:11] == [
        *("save 0", "give 1", "give 2", "read 1", "tell 1", "give 3", "read 2", "tell 2", "read 3", "tell 3", "save 3"),
    ]


def test_an_observed_step_is_read_before_the_next_is_given() -> None:
    said, _, _ = told(late=True, observed=2)
    assert said[:8] == [*("give 1", "give 2 observed", "read 1", "tell 1", "read 2", "tell 2", "give 3", "give 4")]


@pytest.mark.parametrize(("late", "last"), [(False, 2), (True, 3)])
def test_a_run_that_is_told_to_stop_tells_and_saves_what_it_has_begun(late: bool, last: int) -> None:
    said, reports, run = told(late=late, stop_after=2)
    assert said[-3:] == [f"tell {last}", f"save {last}", "end"]
    assert [report.state.step for report in reports] == list(range(1, last + 1)) and run.state.step == last


@pytest.mark.parametrize("late", [False, True])
def test_a_report_has_the_position_after_its_own_step(late: bool) -> None:
    _, reports, run = told(late=late)
    for number, report in enumerate(reports, start=1):
        state = report.state
        assert (state.step, state.tokens, state.samples) == (number, 20 * number, 2 * number)
        assert state.source_tokens == {"web": 15 * number, "code": 5 * number}
    assert run.state == reports[-1].state


def test_times_of_steps_add_up_to_no_more_than_the_run_took() -> None:

    started = time.perf_counter()
    _, reports, _ = told(late=True)
    assert all(report.seconds > 0 for report in reports)
    assert sum(report.seconds for report in reports) <= time.perf_counter() - started


def test_pythons_collector_is_as_it_was_afterwards() -> None:
    assert gc.isenabled()
    seen: list[bool] = []

    class Looks(Listener):
        def on_step(self, run: Run, report: StepReport) -> None:
            seen.append(gc.isenabled())

    said: list[str] = []
    config = RunConfig(train=TrainSection(steps=2, global_batch_size=2, sequence_length=10))
    run: Any = SimpleNamespace(
        config=config,
        state=RunState(seed=0),
        engine=Device(said, late=False),
        info=SimpleNamespace(total_steps=2),
        calendar=SimpleNamespace(is_due=lambda step: False),
        stopping=False,
        is_observed=lambda step: False,
    )
    fit(run, batches(), [Looks(said, stop_after=None, observed=None)])
    assert seen == [False, False] and gc.isenabled() and gc.get_freeze_count() == 0
