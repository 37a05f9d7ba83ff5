"""Learning rates against closed forms, and against Amber's own step-based code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from pretrain.batch_size import BatchSizes
from pretrain.config.schedule import ScheduleConfig
from pretrain.errors import ConfigError
from pretrain.schedule import learning_rate
from pretrain.units import Duration

STEP = 4_587_520  # Amber: 2,240 sequences of 2,048 tokens
SIZES = BatchSizes.constant(2240, sequence_length=2048)
TOTAL = 274_320
AMBER = ScheduleConfig(kind="cosine", learning_rate=3e-4, min_learning_rate=3e-5, warmup="2000 steps")


def at(config: ScheduleConfig, step: int, *, total: int = TOTAL) -> float:
    return learning_rate(config, step * STEP, total_tokens=total * STEP, batch_sizes=SIZES)


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


def wsd(shape: str, **changes: object) -> ScheduleConfig:
    values = {"learning_rate": 1e-3, "min_learning_rate": 1e-5, "warmup": "10 steps", "decay_length": "25%"}
    return ScheduleConfig(kind="wsd", decay_shape=shape, **(values | changes))  # type: ignore[arg-type]


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda f: 1e-3 + f * (1e-5 - 1e-3),
    "cosine": lambda f: 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * f)) / 2,
    "exponential": lambda f: np.exp(np.log(1e-3) * (1 - f) + np.log(1e-5) * f),
    "1-sqrt": lambda f: 1e-5 + (1e-3 - 1e-5) * (1 - f**0.5),
}


@pytest.mark.parametrize("length", ["25%", "100 steps", f"{100 * STEP} tokens"])
@pytest.mark.parametrize("shape", SHAPES)
def test_wsd_warms_up_stays_and_decays_by_its_shape(shape: str, length: str) -> None:
    steps = np.arange(420)
    decayed = SHAPES[shape](np.clip((steps - 300) / 100, 0, 1))
    expected = np.select([steps < 10, steps < 300, steps < 400], [1e-3 * steps / 10, 1e-3, decayed], 1e-5)
    got = [at(wsd(shape, decay_length=length), step, total=400) for step in steps]
    np.testing.assert_allclose(got, expected, rtol=1e-12)  # rounding of another order of operations
    assert (got[0], got[10], got[299], got[300], got[400]) == (0.0, 1e-3, 1e-3, 1e-3, 1e-5)
    assert all(low >= high for low, high in itertools.pairwise(got[10:]))
    assert all(low > high for low, high in itertools.pairwise(got[300:401]))


def test_minicpm_is_an_exponential_decay() -> None:
    """arXiv 2404.06395, section 4.2: the rate halves every T steps of the decay."""
    config = wsd("exponential", min_learning_rate=1e-3 * 0.5**5, decay_length="100 steps")
    for step in (300, 301, 320, 355, 399):
        assert at(config, step, total=400) == pytest.approx(1e-3 * 0.5 ** ((step - 300) / 20), rel=1e-12)


def test_wsd_made_longer_keeps_its_stable_part_and_moves_its_decay() -> None:
    config = wsd("linear", decay_length="100 steps")
    short, long = ([at(config, step, total=total) for step in range(total)] for total in (400, 700))
    assert short[:301] == long[:301]
    assert short[300:] == long[600:]


def test_the_end_of_wsd_may_be_fixed() -> None:
    config = wsd("cosine", decay="400 steps", decay_length="25%")
    assert [at(config, s, total=450) for s in range(450)] == [at(config, s, total=9999) for s in range(450)]
    assert [at(config, s, total=450) for s in range(400)] == [at(wsd("cosine"), s, total=400) for s in range(400)]


def test_a_decay_as_long_as_the_run_begins_after_the_warmup() -> None:
    config = wsd("linear", decay_length="100%")
    linear = ScheduleConfig(kind="linear", learning_rate=1e-3, min_learning_rate=1e-5, warmup="10 steps")
    assert [at(config, s, total=400) for s in range(401)] == [at(linear, s, total=400) for s in range(401)]


def test_deepseek_7b_drops_at_80_and_90_percent_of_its_tokens() -> None:
    """arXiv 2401.02954, section 2.3: 2T tokens, 2,304 sequences of 4,096; x 0.316 at 1.6T, x 0.1 at 1.8T."""
    config = ScheduleConfig(kind="multi_step", learning_rate=4.2e-4, min_learning_rate=0.0, warmup="2000 steps")
    sizes = BatchSizes.constant(2304, sequence_length=4096)
    total = 2_000_000_000_000

    def rate(tokens: int) -> float:
        return learning_rate(config, tokens, total_tokens=total, batch_sizes=sizes)

    warmup = 2000 * 2304 * 4096
    assert rate(warmup // 2) == pytest.approx(2.1e-4, rel=1e-12)
    tokens = [warmup, 1_599_999_999_999, 1_600_000_000_000, 1_799_999_999_999, 1_800_000_000_000, total, 2 * total]
    assert [rate(at) for at in tokens] == [4.2e-4, 4.2e-4, *2 * [4.2e-4 * 0.316], *3 * [4.2e-4 * 0.1]]


@pytest.mark.parametrize("total", [10, 30, 70, 90, 1001])
def test_shares_of_the_tokens_are_reached_on_their_step(total: int) -> None:
    """0.7 and 0.9 have no exact binary form: a step too late would be a step of another rate."""
    config = ScheduleConfig(
        kind="multi_step",
        learning_rate=1.0,
        warmup="0 steps",
        step_shares=[0.3, 0.7, 0.9],
        step_factors=[0.5, 0.2, 0.1],
    )
    for step in range(total):
        reached = sum(10 * step >= tenths * total for tenths in (3, 7, 9))
        assert at(config, step, total=total) == [1.0, 0.5, 0.2, 0.1][reached]


RAMP = BatchSizes.ramp(
    [(Duration(20, "steps"), 2), (Duration(1000, "tokens"), 5)], global_batch_size=10, sequence_length=10
)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd", "multi_step"])
def test_under_a_batch_ramp_the_rate_is_the_same_function_of_tokens(kind: str) -> None:
    """A warmup in steps lasts until the tokens of that step; nothing else knows of batches."""
    config = ScheduleConfig(kind=kind, warmup="30 steps", decay_length="2000 tokens")
    warmup = 20 * 20 + 10 * 50
    assert RAMP.tokens(30) == warmup
    same = ScheduleConfig(kind=kind, warmup=f"{warmup} tokens", decay_length="2000 tokens")
    single = BatchSizes.constant(10, sequence_length=10)
    for step in range(120):
        tokens = RAMP.tokens(step)
        rate = learning_rate(config, tokens, total_tokens=8000, batch_sizes=RAMP)
        assert rate == learning_rate(same, tokens, total_tokens=8000, batch_sizes=single)
        if step <= 30:
            assert rate == pytest.approx(3e-4 * tokens / warmup, rel=1e-12)


def test_a_decay_length_in_steps_counts_back_from_the_end_of_the_ramp() -> None:
    config = wsd("linear", decay_length="40 steps")
    total = RAMP.tokens(60)
    start = RAMP.tokens(20)  # reaches back into the ramp
    rates = [learning_rate(config, RAMP.tokens(s), total_tokens=total, batch_sizes=RAMP) for s in range(61)]
    assert rates[20] == 1e-3 > rates[21]
    assert rates[40] == pytest.approx(1e-3 + (1e-5 - 1e-3) * (RAMP.tokens(40) - start) / (total - start), rel=1e-12)


@pytest.mark.parametrize("length", ["0%", "101%", "x%", "nan%", "20", "fifth"])
def test_a_decay_length_that_is_none_is_refused_by_its_key(length: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.decay_length=.*20%"):
        at(wsd("linear", decay_length=length), 100, total=400)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.decay_shape=sqrt"):
        at(wsd("sqrt"), 350, total=400)
