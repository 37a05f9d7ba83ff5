"""Budgets of wall time, on a clock that is made up."""

from __future__ import annotations

import math

import pytest

from probes.budget import Budget, Tier

TIERS = (Tier("full", 100_000), Tier("fast", 5_000))


def simulate(share: float, *, rate: float, step_seconds: float, steps_per_save: int = 100, saves: int = 30):
    """Runs `saves` saves; returns the tiers scored and the share of wall time that scoring took."""
    budget, clock, scored = Budget(share, TIERS), 0.0, []
    budget.record(1_000, 1_000 / rate)  # the calibration
    clock += 1_000 / rate
    for save in range(saves):
        remaining = (saves - 1 - save) * steps_per_save * step_seconds
        choice = budget.choose(elapsed_seconds=clock, remaining_seconds=remaining, remaining_saves=saves - save)
        scored.append(choice.tier)
        tokens = next((tier.tokens for tier in TIERS if tier.name == choice.tier), 0)
        if tokens:
            seconds = tokens / rate
            budget.record(tokens, seconds)
            clock += seconds
        if save < saves - 1:
            clock += steps_per_save * step_seconds
    return scored, budget.spent_seconds / clock


@pytest.mark.parametrize("step_seconds", [0.001, 0.01, 0.05, 0.2, 1.0, 10.0])
def test_a_run_of_thirty_saves_stays_within_its_share(step_seconds: float) -> None:
    scored, share = simulate(0.01, rate=20_000.0, step_seconds=step_seconds)
    assert share <= 0.0105 or set(scored) == {None}, (scored, share)


def test_with_room_everything_is_full() -> None:
    scored, _ = simulate(0.01, rate=20_000.0, step_seconds=10.0)
    assert scored == ["full"] * 30


def test_with_less_room_saves_are_fast_and_the_last_is_full() -> None:
    scored, _ = simulate(0.01, rate=20_000.0, step_seconds=0.5)
    assert scored[-1] == "full" and scored.count("fast") >= 25


def test_with_little_room_some_saves_are_left_out() -> None:
    scored, _ = simulate(0.01, rate=20_000.0, step_seconds=0.05)
    fast = [number for number, tier in enumerate(scored) if tier == "fast"]
    assert None in scored and len(fast) >= 3 and fast[0] < 15, "spread over the run, not saved up for its end"


def test_an_unmeasured_speed_scores_nothing() -> None:
    budget = Budget(0.01, TIERS)
    assert budget.predict(1) == math.inf
    assert budget.choose(elapsed_seconds=1e9, remaining_seconds=0, remaining_saves=1).tier is None
