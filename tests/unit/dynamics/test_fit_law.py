import numpy as np
import pytest
from scipy import optimize

from pretrain.errors import ProbeError
from probes.dynamics.fit_law import FitRefused, fit_law
from probes.dynamics.law_points import Points, final_points, place
from probes.dynamics.laws import DIRECT, GADRE, LADDER, LAWS, LLAMA3, TOKENS_LAW, Target
from probes.dynamics.published import ladder_reference_fit, olmo_ladder
from probes.dynamics.table import Series

SIZES = (190e6, 370e6, 760e6, 1.3e9)
RUNS = [f"{size}-{length}xC" for size in ("190M", "370M", "760M", "1B") for length in (1, 2, 5, 10)]
TRUTH = {
    "ladder": ([6.0, 5.5, 0.4, 0.28, 0.7], Target()),
    "gadre": ([4.0, 5.0, 0.27, 0.6], Target()),
    "flops": ([6.0, 0.15, 0.6], Target()),
    "llama3": ([4.0, 0.06], Target()),
    "direct-flops": ([6.0, 0.13], Target("log_score", 0.25)),
    "direct": ([7.0, 5.0, 0.4, 0.25], Target("log_score", 0.25)),
    "tokens": ([5.0, 0.25, 0.6], Target()),
}


def grid(value=None, *, sizes=SIZES, per_parameter=(20, 40, 100, 200)):
    n, d = (np.array(column) for column in zip(*[(n, n * m) for n in sizes for m in per_parameter], strict=True))
    values = np.ones(len(n)) if value is None else value
    return Points(
        feature_R={"parameters": n, "tokens": d, "flops": 6 * n * d}, value_R=values, group_R=np.arange(len(n))
    )


def simulated(law, truth, *, target=None, noise=0.0, seed=0, **where):
    empty = grid(**where)
    clean = law.values(np.array(truth), empty.feature_R)
    noisy = clean * np.exp(np.random.default_rng(seed).normal(0, noise, len(clean)))
    return grid((target or Target()).back(noisy), **where)


def ladder_points(task):
    series = next(one for one in olmo_ladder().series() if one.task.startswith(task) and one.metric == "bpb")
    return final_points(olmo_ladder(), series, runs=RUNS)


@pytest.mark.parametrize("name", TRUTH)
def test_parameters_of_clean_data_are_found(name):
    law, (truth, target) = LAWS[name], TRUTH[name]
    fit = fit_law(law, simulated(law, truth, target=target), target=target)
    assert fit.refused is None
    # Huber's objective is flat to 1e-15 about its minimum: parameters are known to the root of that.
    np.testing.assert_allclose(fit.value_K, truth, rtol=2e-3)
    at = place(7e9, 1e12)
    wanted = target.back(np.array([law.value_at(np.array(truth), at)]))[0]
    assert fit.predict(at).value == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("task", ladder_reference_fit())
def test_step_one_of_the_ladder_is_reproduced(task):
    reference = ladder_reference_fit()[task]
    fit = fit_law(LADDER, ladder_points(task))
    for name, size in (("7B-4T", 6_887_575_552.0), ("13B-5T", 13_202_396_160.0)):
        found = LADDER.value_at(fit.value_K, place(size, reference[name]["d"]))
        assert found == pytest.approx(reference[name]["bpb_pred"], rel=1e-3)
    np.testing.assert_allclose(fit.value_K, reference["step1"], rtol=5e-3, atol=2e-3)


def test_exactly_winogrande_csqa_and_boolq_are_refused():
    refused = {task for task in ladder_reference_fit() if fit_law(LADDER, ladder_points(task)).refused}
    assert refused == {"winogrande_val", "csqa_val", "boolq_val"}


def huber_of(points):
    """The ladder's objective, written down again."""
    log_N, log_D = np.log(points.feature_R["parameters"]), np.log(points.feature_R["tokens"])

    def objective(p):
        value = np.exp(p[0] - p[2] * log_N) + np.exp(p[1] - p[3] * log_D) + p[4]
        residual = np.abs(np.log(value / points.value_R))
        return np.where(residual < 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum()

    return objective


def test_a_fit_goes_on_where_the_usual_tolerance_stops_far_off():
    points, at = ladder_points("boolq_val"), place(6_887_575_552.0, 3_945_065_873_408.0)
    start, bounds = [3, 6, 0.1, 0.2, 1], [(0, None)] * 5  # the ladder's
    usual = optimize.minimize(huber_of(points), start, method="L-BFGS-B", bounds=bounds)
    fit = fit_law(LADDER, points)
    assert fit.objective < usual.fun
    assert abs(LADDER.value_at(usual.x, at) / LADDER.value_at(fit.value_K, at) - 1) > 0.02


def test_no_lower_minimum_is_found_by_a_global_search():
    points = ladder_points("piqa_val")
    objective = huber_of(points)
    box = [(0, 20), (0, 20), (0, 1.5), (0, 1.5), (0, 1)]
    best = optimize.differential_evolution(objective, box, seed=0, maxiter=300, tol=1e-10)
    fit = fit_law(LADDER, points)
    assert fit.objective == pytest.approx(objective(fit.value_K), rel=1e-9)
    assert fit.objective <= best.fun * (1 + 1e-6)


def test_squares_are_those_of_curve_fit():
    points = simulated(GADRE, TRUTH["gadre"][0], noise=0.01)
    n, d = points.feature_R["parameters"], points.feature_R["tokens"]

    def form(_, log_a, log_b, b, floor):
        return np.exp(log_a) * n**-b + np.exp(log_b) * (np.sqrt(6) * d) ** -b + floor

    wanted, _ = optimize.curve_fit(form, n, points.value_R, p0=TRUTH["gadre"][0], maxfev=100_000)
    np.testing.assert_allclose(fit_law(GADRE, points).value_K, wanted, rtol=1e-3)


def test_a_weight_counts_as_repeated_points():
    points = simulated(LADDER, TRUTH["ladder"][0], noise=0.01)
    weight = np.array([1, 2, 3, 1] * 4)
    repeated = points.where(np.repeat(np.arange(16), weight))
    weighted = fit_law(LADDER, points, weight_R=weight.astype(float))
    assert weighted.objective == pytest.approx(fit_law(LADDER, repeated).objective, rel=1e-6)


def test_a_fit_is_the_same_every_time():
    points = simulated(LADDER, TRUTH["ladder"][0], noise=0.02)
    np.testing.assert_array_equal(fit_law(LADDER, points).value_K, fit_law(LADDER, points).value_K)


def test_a_floor_at_its_bound_is_refused_and_predicts_nothing():
    fit = fit_law(LADDER, simulated(LADDER, [2.0, 2.5, 0.15, 0.1, 0.0]))
    assert "E is at its bound" in fit.refused
    with pytest.raises(FitRefused, match="E is at its bound") as caught:
        fit.predict(place(2e9, 1e11))
    assert caught.value.reason == fit.refused and isinstance(caught.value, ProbeError)


def test_a_tiny_exponent_is_refused():
    fit = fit_law(TOKENS_LAW, simulated(TOKENS_LAW, [1.0, 0.02, 0.5]), starts=[np.array([1.0, 0.02, 0.5])])
    assert "exponent beta is 0.020, below 0.05" in fit.refused


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"sizes": SIZES[:2]}, "2 different values of parameters; at least 3"),
        ({"sizes": SIZES[:3], "per_parameter": (20, 40)}, "6 points for 5 parameters; at least 7"),
        ({"sizes": np.geomspace(1e8, 1e10, 9), "per_parameter": (20,)}, "size and tokens rise together"),
    ],
)
def test_points_that_cannot_tell_the_terms_apart_are_refused(where, reason):
    fit = fit_law(LADDER, simulated(LADDER, TRUTH["ladder"][0], **where))
    assert reason in fit.refused and np.isnan(fit.value_K).all()
    with pytest.raises(FitRefused):
        fit.predict(place(1e9, 1e11))


def test_noise_is_refused():
    assert "of the points' variance" in fit_law(LLAMA3, grid(np.random.default_rng(0).normal(1, 0.1, 16))).refused


def test_scores_that_have_not_left_chance_are_refused():
    points = grid(np.array([0.24, 0.25, 0.26, 0.27] * 4))
    assert "50% of the points are not above chance" in fit_law(DIRECT, points, target=Target("log_score", 0.25)).refused


def test_places_far_from_the_points_are_refused_with_the_range():
    fit = fit_law(LADDER, simulated(LADDER, TRUTH["ladder"][0]))
    assert fit.why_not(place(13e9, 5e12)) is None
    with pytest.raises(FitRefused, match=r"parameters 1e\+12 is more than 30 times outside .* 1.9e\+08 to 1.3e\+09"):
        fit.predict(place(1e12, 5e12))
    assert "tokens" in fit.why_not(place(1e9, 1e14))
    assert "parameters" in fit.why_not(place(1e6, 1e11))


def test_final_points_are_means_of_the_last_five_where_a_run_ended():
    table, series = olmo_ladder(), Series("hellaswag_val_rc_5shot", "bpb")
    points = final_points(table, series, runs=["190M-1xC", "1B-10xC"])
    curves = [table.get(run, series) for run in ("190M-1xC", "1B-10xC")]
    np.testing.assert_allclose(points.value_R, [curve.value_C[-5:].mean() for curve in curves])
    np.testing.assert_allclose(points.feature_R["tokens"], [curve.tokens_C[-1] for curve in curves])
    np.testing.assert_allclose(
        points.feature_R["flops"], 6 * points.feature_R["parameters"] * points.feature_R["tokens"]
    )


def test_a_table_without_the_series_says_what_a_law_needs():
    with pytest.raises(ProbeError, match="three sizes and three lengths"):
        final_points(olmo_ladder(), Series("unknown", "bpb"))
