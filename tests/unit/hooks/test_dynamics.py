"""Which steps are observed, and in which row their figures land."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.config.run import BatchStage, RunConfig, TrainSection
from pretrain.engine.base import StepResult
from pretrain.hooks.base import StepReport
from pretrain.hooks.dynamics import DynamicsHook
from pretrain.state import RunState


class Tracker:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], *, step: int, tokens: int) -> None:
        self.rows.append((step, dict(values)))


def observed_steps(every: str, *, first: int = 0, last: int = 12, ramp: list[BatchStage] | None = None) -> list[int]:
    """Runs the loop's part of the contract."""
    train = TrainSection(steps=last, global_batch_size=4, sequence_length=10, batch_ramp=ramp or [])
    config = RunConfig(train=train)
    tracker = Tracker()
    run: Any = SimpleNamespace(
        config=config, state=RunState(seed=0, step=first), tracker=tracker, is_observed=lambda step: False
    )
    hook = DynamicsHook(every)
    hook.on_start(run)
    asked = []
    while run.state.step < last:
        figures = (
            {"dynamics/output_entropy": float(run.state.step + 1)} if run.is_observed(run.state.step + 1) else None
        )
        run.state.step += 1
        asked += [run.state.step] if figures else []
        result = StepResult(loss=1.0, tokens=40, grad_norm=1.0, dynamics=figures)
        hook.on_step(run, StepReport(result=result, state=run.state, learning_rate=1e-3, seconds=1.0))
    assert tracker.rows == [(step, {"dynamics/output_entropy": step}) for step in asked]
    return asked


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("5 steps", [1, 5, 10]),
        ("1 steps", list(range(1, 13))),
        ("200 tokens", [1, 5, 10]),
        ("90 tokens", [1, 3, 5, 7, 9, 12]),
        ("10 tokens", list(range(1, 13))),
    ],
)
def test_the_first_step_and_every_multiple_are_observed(every: str, expected: list[int]) -> None:
    assert observed_steps(every) == expected


def test_a_resumed_run_observes_the_same_steps() -> None:
    assert observed_steps("5 steps", first=4) == [5, 10]
    assert observed_steps("5 steps", first=5) == [10]


def test_tokens_follow_the_batch_ramp() -> None:
    ramp = [BatchStage(until="4 steps", global_batch_size=1)]
    assert observed_steps("40 tokens", ramp=ramp, last=7) == [1, 4, 5, 6, 7]
