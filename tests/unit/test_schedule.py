"""Learning rates against closed forms, and against Amber's own step-based code."""

from __future__ import annotations

import itertools
import math

import pytest

from pretrain.config.schedule import ScheduleConfig
from pretrain.errors import ConfigError
from pretrain.schedule import learning_rate

STEP = 4_587_520  # Amber: 2,240 sequences of 2,048 tokens
TOTAL = 274_320
AMBER = ScheduleConfig(kind="cosine", learning_rate=3e-4, min_learning_rate=3e-5, warmup="2000 steps")


def at(config: ScheduleConfig, step: int, *, total: int = TOTAL) -> float:
    return learning_rate(config, step * STEP, total_tokens=total * STEP, tokens_per_step=STEP)


def amber(step: int) -> float:
    """LLM360/amber-train, main_utils.py get_cosine_lr_decay_fn."""
    if step < 2000:
        return 3e-4 * step / 2000
    if step > TOTAL:
        return 3e-5
    ratio = (step - 2000) / (TOTAL - 2000)
    return 3e-5 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (3e-4 - 3e-5)


@pytest.mark.parametrize("step", [0, 1, 7, 761, 762, 1999, 2000, 2001, 76_200, 137_160, 138_160, 200_001, 274_319])
def test_amber_schedule_is_reproduced_bit_for_bit(step: int) -> None:
    assert at(AMBER, step) == amber(step)


def test_the_first_update_has_learning_rate_zero_and_the_peak_follows_the_warmup() -> None:
    assert at(AMBER, 0) == 0.0
    assert at(AMBER, 2000) == 3e-4
    assert at(AMBER, 2000 + (TOTAL - 2000) // 2) == pytest.approx((3e-4 + 3e-5) / 2, rel=1e-12)


def test_the_minimum_holds_from_the_end_on() -> None:
    assert at(AMBER, TOTAL) == at(AMBER, TOTAL + 12345) == 3e-5


def test_linear_falls_by_equal_amounts() -> None:
    config = ScheduleConfig(kind="linear", learning_rate=1.0, min_learning_rate=0.5, warmup="10 steps")
    values = [at(config, step, total=110) for step in range(10, 111)]
    assert (values[0], values[-1]) == (1.0, 0.5)
    assert [a - b for a, b in itertools.pairwise(values)] == pytest.approx([0.005] * 100, rel=1e-9)


def test_constant_stays_at_the_peak_past_the_end() -> None:
    config = ScheduleConfig(kind="constant", learning_rate=1e-3, warmup="4 steps")
    assert [at(config, step, total=10) for step in (0, 1, 2, 3, 4, 9, 10, 99)] == [
        0.0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 1e-3,
    ]  # fmt: skip


def test_a_decay_of_its_own_does_not_depend_on_the_length_of_the_run() -> None:
    config = ScheduleConfig(kind="cosine", warmup="10 steps", decay="100 steps")
    assert [at(config, step, total=150) for step in range(150)] == [at(config, step, total=9999) for step in range(150)]
    assert at(config, 100, total=9999) == config.min_learning_rate


def test_durations_in_tokens_equal_the_same_durations_in_steps() -> None:
    in_tokens = ScheduleConfig(warmup=f"{2000 * STEP} tokens")
    for step in (0, 999, 2000, 90_000):
        assert at(in_tokens, step) == at(AMBER, step)


def test_no_warmup_starts_at_the_peak_and_a_run_of_warmup_alone_never_divides_by_zero() -> None:
    assert at(ScheduleConfig(warmup="0 steps"), 0) == 3e-4
    assert [at(ScheduleConfig(warmup="4 steps"), step, total=4) for step in (3, 4)] == [3e-4 * 3 / 4, 3e-5]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="cosin"):
        at(ScheduleConfig(kind="cosin"), 3000)
