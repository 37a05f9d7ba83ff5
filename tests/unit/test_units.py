"""Durations and shares: text to steps, tokens and fractions, exactly."""

from __future__ import annotations

import pytest

from pretrain.errors import ConfigError
from pretrain.units import Duration, parse_count, parse_share


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
        ("1e3 steps", 1000, "steps"),
        ("1.5e9 tokens", 1_500_000_000, "tokens"),
        ("1e+16 tokens", 10**16, "tokens"),
        ("200", 200, "steps"),
        (200, 200, "steps"),
        (1e9, 10**9, "steps"),
        ("10k", 10_000, "steps"),
    ],
)
def test_durations_are_read_exactly(text: str, count: int, unit: str) -> None:
    assert Duration.parse(text) == Duration(count, unit)


@pytest.mark.parametrize(
    "text", ["", "steps", "-1 steps", "2 days", "1.5 steps", "0.0001k tokens", "1e999", True, "1e"]
)
def test_what_is_no_duration_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup="):
        Duration.parse(text, key="schedule.warmup")


@pytest.mark.parametrize("written", [2_000_000_000, 2e9, "2e9", "2B", "2B tokens", "2_000_000_000", "2000m Tokens"])
def test_a_count_is_written_like_a_duration_and_needs_no_unit(written: int | float | str) -> None:
    assert parse_count(written, unit="tokens") == 2_000_000_000


def test_a_count_of_another_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.tokens='10 steps' counts steps, where tokens are counted"):
        parse_count("10 steps", unit="tokens", key="train.tokens")
    with pytest.raises(ConfigError, match=r"'7x' is not a number of parameters.*'200 steps', '1.5B tokens'"):
        parse_count("7x", unit="parameters")
    with pytest.raises(ConfigError, match="1.5 is not a whole number of steps"):
        parse_count(1.5, unit="steps")


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
