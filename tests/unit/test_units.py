"""Durations and shares: text to steps, tokens and fractions, exactly."""

from __future__ import annotations

import pytest

from pretrain.errors import ConfigError
from pretrain.units import Duration, parse_share


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("200 steps", 200, "steps"),
        ("1 step", 1, "steps"),
        ("4_587_520 tokens", 4_587_520, "tokens"),
        ("2B tokens", 2_000_000_000, "tokens"),
        ("1.5b tokens", 1_500_000_000, "tokens"),
        ("0.1k steps", 100, "steps"),
        ("3T Tokens", 3_000_000_000_000, "tokens"),
        ("0 steps", 0, "steps"),
    ],
)
def test_durations_are_read_exactly(text: str, count: int, unit: str) -> None:
    assert Duration.parse(text) == Duration(count, unit)


@pytest.mark.parametrize("text", ["", "200", "steps", "-1 steps", "1e3 steps", "2 days", "1.5 steps", "0.0001k tokens"])
def test_what_is_no_duration_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup="):
        Duration.parse(text, key="schedule.warmup")


def test_a_duration_prints_as_it_is_read() -> None:
    for text in ("200 steps", "4_587_520 tokens"):
        assert str(Duration.parse(text)) == text


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), (0.02, 0.02), ("1", 1.0)])
def test_shares_are_read(text: str | float, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0%", "-1%", "101%", "much", "1 %%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="probe.budget=.*share above 0%"):
        parse_share(text, key="probe.budget")
