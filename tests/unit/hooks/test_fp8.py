"""fp8's gate: what it logs, when it looks, and what it says when it ends a run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.errors import EngineError
from pretrain.hooks.fp8 import Fp8Hook
from pretrain.state import RunState


def run_with(gap: float | None, *, step: int = 10, resumed: int = -1, due: bool = True) -> tuple[Any, list[Any]]:
    said: list[Any] = []
    tracker = SimpleNamespace(
        log=lambda values, *, step, tokens: said.append(values), event=lambda kind, **fields: said.append(kind)
    )
    run = SimpleNamespace(
        state=RunState(seed=0, step=step),
        info=SimpleNamespace(resume_step=resumed),
        calendar=SimpleNamespace(is_due=lambda _: due),
        engine=SimpleNamespace(fp8_loss_gap=lambda: gap),
        tracker=tracker,
    )
    return run, said


@pytest.mark.parametrize("gap", [0.004, -0.02])
def test_a_gap_within_the_tolerance_is_logged(gap: float) -> None:
    run, said = run_with(gap)
    Fp8Hook(0.02).on_save(run)
    assert said == [{"precision/fp8_loss_gap": gap}]


@pytest.mark.parametrize("gap", [0.03, -0.03, math.nan])
def test_a_larger_gap_or_none_at_all_ends_the_run_with_the_remedy(gap: float) -> None:
    run, said = run_with(gap)
    with pytest.raises(EngineError, match=r"at step 10 .* precision\.fp8_tolerance=0\.02 .* precision\.fp8=false"):
        Fp8Hook(0.02).on_save(run)
    assert said[-1] == "fp8_refused"


@pytest.mark.parametrize("options", [{"due": False}, {"resumed": 10}])
def test_it_looks_at_saves_of_the_calendar_once(options: dict[str, Any]) -> None:
    run, said = run_with(9.0, **options)
    Fp8Hook(0.02).on_save(run)
    assert not said


def test_before_the_first_step_there_is_nothing_to_compare() -> None:
    run, said = run_with(None, step=0)
    Fp8Hook(0.02).on_save(run)
    assert not said
