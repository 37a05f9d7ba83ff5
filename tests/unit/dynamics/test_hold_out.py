"""Errors of held-out runs, the choice between laws, and intervals that come from them."""

import numpy as np
import pytest
from scipy import stats

from probes.dynamics.fit_law import fit_law, quantiles
from probes.dynamics.hold_out import HeldOut, held_out, with_intervals
from probes.dynamics.law_choice import fit_best, fit_direct
from probes.dynamics.law_points import Points, place
from probes.dynamics.laws import DIRECT, FLOPS_LAW, LADDER, ONE_EXPONENT, Target
from probes.dynamics.resample import WIDENING

SIZES, RATIOS = (1e8, 2e8, 4e8, 8e8), (20, 40, 80, 160)
ONE, TWO = np.array([5.0, 5.5, 0.3, 1.5]), np.array([9.0, 3.0, 0.55, 0.15, 0.8])


def points(law, value_K, *, noise=0.0, sizes=SIZES, ratios=RATIOS, seed=0):
    n, d = (np.array(column) for column in zip(*[(n, n * m) for n in sizes for m in ratios], strict=True))
    feature_R = {"parameters": n, "tokens": d, "flops": 6 * n * d}
    value_R = law.values(value_K, feature_R) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))
    return Points(feature_R=feature_R, value_R=value_R, group_R=np.arange(len(n)))


def test_the_held_out_error_is_that_of_fits_without_the_largest_size_and_without_the_longest_runs():
    given = points(LADDER, TWO, noise=0.01)
    n, ratio = given.feature_R["parameters"], given.feature_R["tokens"] / given.feature_R["parameters"]
    spreads, roots = [], []
    for held in (n == n.max(), ratio > 100):
        fit = fit_law(LADDER, given.where(~held))
        told = LADDER.values(fit.value_K, given.where(held).feature_R)
        off = np.log(given.value_R[held] / told)
        spreads.append(np.median(np.abs(off)) / stats.norm.ppf(0.75))
        roots.append(np.sqrt(np.mean(off**2)))
    found = held_out(LADDER, given)
    assert found.spread == pytest.approx(np.mean(spreads), rel=1e-9)
    assert found.root_mean_square == pytest.approx(np.mean(roots), rel=1e-9)


def test_a_law_that_is_right_has_no_held_out_error_and_one_that_is_wrong_has():
    given = points(LADDER, TWO)
    assert held_out(LADDER, given).root_mean_square < 1e-4
    assert held_out(ONE_EXPONENT, given).root_mean_square > 1e-3


def test_intervals_get_wider_where_the_form_is_wrong_on_held_out_runs():
    given = points(LADDER, TWO, noise=0.003)
    fit = fit_law(LADDER, given)
    plain = with_intervals(fit, draws=100, error=HeldOut(0.0, 0.0))
    wide = with_intervals(fit, draws=100, error=HeldOut(0.1, 0.1))
    at = place(5e9, 1e11)
    width = {name: np.diff(quantiles(one.draws_at(at), 0.8))[0] for name, one in (("plain", plain), ("wide", wide))}
    # A normal distribution's middle 80% is 2.56 standard deviations wide; 100 draws tell it to a tenth.
    assert width["wide"] == pytest.approx(2.56 * 0.1 * fit.predict(at).value, rel=0.25)
    assert width["wide"] > 3 * width["plain"]


def test_a_single_bad_run_does_not_widen_an_interval():
    given = points(LADDER, TWO, noise=0.003)
    spoilt = Points(
        feature_R=given.feature_R, value_R=given.value_R * np.where(np.arange(16) == 5, 1.3, 1), group_R=given.group_R
    )
    at, widths = place(1e9, 1e11), []
    for one in (given, spoilt):
        low, high = quantiles(
            with_intervals(fit_law(LADDER, one), draws=100, error=HeldOut(0.0, 0.0)).draws_at(at), 0.8
        )
        widths.append(high / low - 1)
    assert widths[1] < 3 * widths[0]


def test_where_nothing_can_be_held_out_the_ladder_s_widening_stands_in():
    given = points(LADDER, TWO, noise=0.003, sizes=SIZES[:3], ratios=RATIOS[:3])
    assert held_out(LADDER, given) is None
    fit = with_intervals(fit_law(LADDER, given), draws=20)
    assert (fit.widening, fit.law_error) == (WIDENING, 0.0)


@pytest.mark.parametrize(("law", "truth"), [(ONE_EXPONENT, ONE), (LADDER, TWO)])
def test_the_law_that_made_the_points_is_chosen(law, truth):
    given = points(law, truth, noise=0.0005)
    fit = fit_best(given, target=Target(), draws=0)
    at = place(6.4e9, 6.4e11)
    assert fit.predict(at).value == pytest.approx(law.value_at(truth, at), rel=0.01)
    if law is LADDER:
        assert fit.law is LADDER


def test_runs_of_one_ratio_get_a_law_of_flops_that_refuses_other_ratios():
    given = points(ONE_EXPONENT, ONE, sizes=np.geomspace(1e7, 1e9, 8), ratios=(20,))
    fit = fit_best(given, target=Target(), draws=0)
    assert fit.law is FLOPS_LAW
    assert fit.predict(place(7e9, 1.4e11)).value == pytest.approx(
        ONE_EXPONENT.value_at(ONE, place(7e9, 1.4e11)), rel=0.01
    )
    assert "runs like the fitted ones have about 2.6e+10 parameters" in fit.why_not(place(7e9, 2e12))


def test_a_score_without_a_loss_has_a_law_of_size_and_length_from_eight_models():
    truth, target = np.array([7.0, 5.0, 0.4, 0.25]), Target("log_score", 0.25)
    given = points(DIRECT, truth, ratios=(20, 80))
    scored = Points(feature_R=given.feature_R, value_R=target.back(given.value_R), group_R=given.group_R)
    fit, at = fit_direct(scored, target=target, draws=0), place(3e9, 1e11)
    wanted = target.back(np.array([DIRECT.value_at(truth, at)]))[0]
    assert fit.law is DIRECT and fit.predict(at).value == pytest.approx(wanted, rel=1e-3)
