import numpy as np
import pytest
from scipy import optimize

from probes.dynamics.link import (
    EXPONENTIAL,
    LINKS,
    SIGMOID,
    SOFT_LOG,
    LinkPoints,
    fit_link,
    link_points,
    moving_average,
)
from probes.dynamics.published import ladder_reference_fit, olmo_ladder
from probes.dynamics.table import Series, make_curve

RUNS = [f"{size}-{length}xC" for size in ("190M", "370M", "760M", "1B") for length in (1, 2, 5, 10)]
LOSS = np.linspace(0.6, 1.6, 200)
TRUTH = {"sigmoid": [-0.7, 0.8, 6.0, 0.95], "soft-log": [-0.05, 0.6, 8.0], "exponential": [0.75, 2.0, 1.6]}


def points_of(loss, score, groups=8):
    return LinkPoints(loss_P=loss, score_P=score, group_P=np.arange(len(loss)) * groups // len(loss))


def ladder_pairs(task):
    table = olmo_ladder()
    own = [series for series in table.series() if series.task.startswith(task)]
    loss, score = (next(one for one in own if (one.metric == "bpb") == is_loss) for is_loss in (True, False))
    return [(table.get(run, loss), table.get(run, score)) for run in RUNS]


def curve(tokens, values, *, metric="bpb"):
    tokens, nothing = np.asarray(tokens, float), np.full(len(tokens), np.nan)
    series = Series("task", metric)
    return make_curve(tokens, tokens, np.asarray(values, float), nothing, run="run", series=series, domain="x")


@pytest.mark.parametrize("name", LINKS)
def test_derivatives_are_what_finite_differences_give(name):
    value_K = np.array(TRUTH[name])
    found = LINKS[name].function(LOSS, value_K)[1].sum(axis=0)
    numeric = optimize.approx_fprime(value_K, lambda p: LINKS[name].function(LOSS, p)[0].sum(), 1e-7)
    np.testing.assert_allclose(found, numeric, rtol=1e-4)


def test_the_soft_log_link_is_the_ladder_s():
    a, x0, k = TRUTH["soft-log"]
    by_hand = 1 - a * np.log(1 - 1 / (1 + np.exp(-k * (LOSS - x0))))
    np.testing.assert_allclose(SOFT_LOG.function(LOSS, np.array([a, x0, k]))[0], by_hand, rtol=1e-9)


def test_an_average_is_over_the_last_five_and_fewer_at_first():
    values = np.random.default_rng(0).normal(size=12)
    by_hand = [values[max(0, i - 4) : i + 1].mean() for i in range(12)]
    np.testing.assert_allclose(moving_average(values, 5), by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moving_average(values[:3], 5), by_hand[:3])


@pytest.mark.parametrize("name", TRUTH)
def test_parameters_of_clean_data_are_found(name):
    link = LINKS[name]
    score = link.function(LOSS, np.array(TRUTH[name]))[0]
    fit = fit_link(points_of(LOSS, score), link=link, chance=0.25)
    assert fit.refused is None
    if link.ideal:  # the point (0, 1) pulls a sigmoid whose ceiling is below 1
        np.testing.assert_allclose(fit.score(LOSS), score, atol=0.01)
    else:
        np.testing.assert_allclose(fit.value_K, TRUTH[name], rtol=1e-3)


@pytest.mark.parametrize("task", ladder_reference_fit())
def test_step_two_of_the_ladder_is_reproduced(task):
    pairs = ladder_pairs(task)
    fit = fit_link(link_points(pairs), chance=pairs[0][1].chance)
    np.testing.assert_allclose(fit.value_K, ladder_reference_fit()[task]["step2"], rtol=1e-4)


def test_the_fit_is_curve_fit_s():
    rng = np.random.default_rng(0)
    score = SIGMOID.function(LOSS, np.array(TRUTH["sigmoid"]))[0] + rng.normal(0, 0.01, 200)
    wanted, _ = optimize.curve_fit(
        lambda x, *p: SIGMOID.function(x, np.array(p))[0], np.append(LOSS, 0.0), np.append(score, 1.0),
        p0=SIGMOID.start(0.25), bounds=(SIGMOID.lower, SIGMOID.upper), maxfev=500_000,
    )  # fmt: skip
    found = fit_link(points_of(LOSS, score), chance=0.25)
    np.testing.assert_allclose(found.score(LOSS), SIGMOID.function(LOSS, wanted)[0], atol=1e-5)


def test_points_are_the_common_checkpoints_without_the_first_tenth():
    loss = curve(range(10, 30), np.arange(20) / 10)
    score = curve(range(12, 34), np.arange(22) / 100, metric="acc")
    points = link_points([(loss, score), (loss, score)], window=1)
    assert len(points.loss_P) == 2 * (18 - 2)
    np.testing.assert_allclose(points.loss_P[:16], np.arange(4, 20) / 10)
    np.testing.assert_allclose(points.score_P[:16], np.arange(2, 18) / 100)
    assert (points.group_P == np.repeat([0, 1], 16)).all()


def test_a_score_that_does_not_follow_the_loss_is_refused():
    score = 0.5 + np.random.default_rng(0).normal(0, 0.02, 200)
    assert "hardly follows the loss" in fit_link(points_of(LOSS, score), chance=0.5).refused
    assert "hardly follows the loss" in fit_link(points_of(LOSS, LOSS / 2), chance=0.25).refused
    assert "never changes" in fit_link(points_of(LOSS, np.full(200, 0.5))).refused


def test_a_score_that_has_not_left_chance_is_refused():
    score = 0.25 + 0.005 * (1.6 - LOSS) + np.random.default_rng(0).normal(0, 0.0015, 200)
    assert "has not left chance" in fit_link(points_of(LOSS, score), chance=0.25).refused


def test_resampled_links_are_deterministic_and_near_the_fit():
    score = EXPONENTIAL.function(LOSS, np.array(TRUTH["exponential"]))[0]
    score = score + np.random.default_rng(0).normal(0, 0.01, 200)
    fits = [fit_link(points_of(LOSS, score), link=EXPONENTIAL, draws=20) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].draw_BK, fits[1].draw_BK)
    drawn = fits[0].draws_at(np.full(20, 0.9))
    assert abs(np.median(drawn) - fits[0].score(np.array([0.9]))[0]) < 0.01


def test_too_few_checkpoints_are_refused():
    fit = fit_link(points_of(LOSS[:7], LOSS[:7]))
    assert "7 checkpoints have both a loss and a score; the link sigmoid needs at least 8" in fit.refused
    assert fit_link(points_of(LOSS[::25], 1 - LOSS[::25] / 2)).refused is None


def test_the_only_checkpoint_of_a_run_is_kept():
    pairs = [(curve([n], [2.0 / n]), curve([n], [n / 10], metric="acc")) for n in range(1, 9)]
    np.testing.assert_allclose(link_points(pairs).score_P, np.arange(1, 9) / 10)
