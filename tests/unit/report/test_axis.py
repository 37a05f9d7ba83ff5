import math

import numpy as np
import pytest

from probes.report.axis import TokenAxis


def test_step_zero_has_its_own_tick_at_half_a_step() -> None:
    axis = TokenAxis.spanning([0, 1000, 100_000], tokens_per_step=1000)
    assert axis.place(0) == 500.0 and axis.place(1000) == 1000.0
    layout = axis.layout()
    assert layout["tickvals"][0] == 500.0 and layout["ticktext"][0] == "0"
    assert {"10k", "100k"} <= set(layout["ticktext"])


def test_without_step_zero_there_is_no_zero() -> None:
    layout = TokenAxis.spanning([1000, 100_000], tokens_per_step=1000).layout()
    assert "0" not in layout["ticktext"]


@pytest.mark.parametrize("seed", range(200))
def test_ticks_are_finite_distinct_and_inside_the_axis(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = [int(10**exponent) for exponent in random.uniform(0, 13.3, size=random.integers(0, 20))]
    axis = TokenAxis.spanning([*tokens, 0], tokens_per_step=int(10 ** random.uniform(0, 7.8)))
    layout = axis.layout()
    low, high = layout["range"]
    assert low < high
    assert all(low <= math.log10(tick) <= high for tick in layout["tickvals"])
    assert len(set(layout["ticktext"])) == len(layout["ticktext"]) <= 12
