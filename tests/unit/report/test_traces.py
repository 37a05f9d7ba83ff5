import numpy as np
import pytest

from probes.report.curves import Point
from probes.report.traces import smoothed, thinned


def points(values: np.ndarray) -> list[Point]:
    return [Point(step=n, tokens=n * 10, value=float(value), stderr=None) for n, value in enumerate(values)]


def test_smoothing_is_a_mean_over_five_percent_either_side() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    found = smoothed(points(values))
    for index in (0, 10, 40, 1000, 2500, 2999):
        reach = min(int(0.05 * index), 100)
        expected = values[index - reach : index + reach + 1].mean()
        assert found[index].value == pytest.approx(expected, abs=1e-10)


def test_thinning_keeps_both_ends_and_the_dense_start() -> None:
    found = [point.step for point in thinned(points(np.zeros(200_000)))]
    assert len(found) <= 1501 and found == sorted(set(found))
    assert found[0] == 0 and found[-1] == 199_999
    assert found[:10] == list(range(10))


def test_short_curves_are_left_alone() -> None:
    assert len(thinned(points(np.zeros(1500)))) == 1500
