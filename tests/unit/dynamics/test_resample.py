import numpy as np
import pytest

from probes.dynamics.fit_law import fit_law, quantiles
from probes.dynamics.law_points import Points, place
from probes.dynamics.laws import LADDER, TOKENS_LAW
from probes.dynamics.resample import can_be_fitted, group_weights, resample

SIZES, RATIOS = (190e6, 370e6, 760e6, 1.3e9), (20, 40, 100, 200)
TRUTH = np.array([6.0, 5.5, 0.4, 0.28, 0.7])
FAR = place(2.6e9, 5e11)


def simulated(noise, *, seed=0):
    n, d = (np.array(column) for column in zip(*[(n, n * m) for n in SIZES for m in RATIOS], strict=True))
    clean = LADDER.values(TRUTH, {"parameters": n, "tokens": d})
    values = clean * np.exp(np.random.default_rng(seed).normal(0, noise, 16))
    return Points(feature_R={"parameters": n, "tokens": d}, value_R=values, group_R=np.arange(16))


def test_a_fit_without_draws_has_no_interval():
    fit = fit_law(LADDER, simulated(0.01))
    found = fit.predict(FAR)
    assert np.isnan([found.low, found.high]).all() and np.isfinite(found.value)
    assert np.isnan(fit.parameter_interval("alpha")).all()


@pytest.mark.parametrize("how", ["groups", "residuals"])
def test_intervals_are_the_same_for_the_same_seed(how):
    fit = fit_law(LADDER, simulated(0.01))
    once, again, other = (resample(fit, draws=30, how=how, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once.draw_BK, again.draw_BK)
    assert not np.array_equal(once.draw_BK, other.draw_BK)
    assert once.predict(FAR).low < fit.predict(FAR).value < once.predict(FAR).high


@pytest.mark.slow
@pytest.mark.parametrize("how", ["groups", "residuals"])
def test_intervals_hold_new_points_about_as_often_as_they_say(how):
    # A law that is right needs no widening. 60 data sets: a share of .8 has a standard error of .05.
    held = 0
    for seed in range(60):
        fit = resample(fit_law(LADDER, simulated(0.008, seed=seed)), draws=60, how=how, widening=1.0, seed=seed)
        truth = LADDER.value_at(TRUTH, FAR) * np.exp(np.random.default_rng(1000 + seed).normal(0, 0.008))
        low, high = quantiles(fit.draws_at(FAR), 0.8)
        held += low <= truth <= high
    assert 0.65 <= held / 60 <= 0.95


def test_more_noise_means_wider_intervals():
    widths = []
    for noise in (0.002, 0.01):
        found = resample(fit_law(LADDER, simulated(noise)), draws=60).predict(FAR)
        widths.append(found.high - found.low)
    assert widths[1] > 2 * widths[0]


def test_widening_moves_draws_away_from_the_fit_by_that_factor():
    fit = fit_law(LADDER, simulated(0.01))
    plain, wide = (resample(fit, draws=40, widening=times) for times in (1.0, 1.5))
    value = fit.predict(FAR).value
    np.testing.assert_allclose(np.log(wide.draws_at(FAR) / value), 1.5 * np.log(plain.draws_at(FAR) / value), rtol=1e-9)


def test_a_higher_level_is_a_wider_interval():
    fit = resample(fit_law(LADDER, simulated(0.01)), draws=100)
    narrow, wide = fit.predict(FAR, level=0.5), fit.predict(FAR, level=0.9)
    assert wide.low < narrow.low < narrow.high < wide.high
    low, high = fit.parameter_interval("alpha", level=0.9)
    assert low < fit.parameter("alpha") < high


def test_groups_are_drawn_whole():
    groups = np.repeat(np.arange(5), 4)
    weight = group_weights(groups, np.random.default_rng(0)).reshape(5, 4)
    assert (weight == weight[:, :1]).all()
    assert weight[:, 0].sum() == 5


def test_a_draw_keeps_three_sizes_and_lengths():
    points = simulated(0.01)
    two_sizes = (points.feature_R["parameters"] < 5e8).astype(float)
    assert not can_be_fitted(LADDER, points, two_sizes)
    assert can_be_fitted(LADDER, points, np.ones(16))


def test_residuals_of_a_curve_are_exchanged_by_stretches():
    tokens = np.geomspace(1e9, 1e11, 40)
    clean = TOKENS_LAW.values(np.array([5.0, 0.25, 1.0]), {"tokens": tokens})
    slow = 0.01 * np.sin(np.arange(40) / 3)
    groups = {"alone": np.arange(40), "stretches": np.arange(40) // 8}
    widths = {}
    for name, group_R in groups.items():
        points = Points(feature_R={"tokens": tokens}, value_R=clean * np.exp(slow), group_R=group_R)
        found = resample(fit_law(TOKENS_LAW, points), draws=100, how="residuals").predict({"tokens": 3e11})
        widths[name] = found.high - found.low
    assert widths["stretches"] > widths["alone"]


def test_a_fit_of_too_few_points_is_left_as_it_is():
    fit = fit_law(LADDER, simulated(0.01).where(np.arange(16) < 3))
    assert resample(fit, draws=5) is fit
