import numpy as np
import pytest
from scipy import optimize

from probes.dynamics.laws import ANNEALING_AREA, FORWARD_AREA, GADRE, LADDER, LAWS, Target

PLACES = {
    "parameters": np.array([1e8, 3e8, 1e9, 7e9]),
    "tokens": np.array([2e9, 9e10, 3e10, 4e12]),
    "flops": np.array([1e18, 2e19, 3e20, 1e23]),
    FORWARD_AREA: np.array([0.5, 1.0, 3.0, 4.0]),
    ANNEALING_AREA: np.array([0.0, 0.0, 0.02, 0.1]),
}
SOME = {"alpha": 0.3, "beta": 0.25, "b": 0.2, "E": 0.5, "L0": 0.5, "C": 0.7, "log_A": 3.0, "log_B": 4.0}


def some(law):
    return np.array([SOME.get(name, 1.5) for name in law.parameters])


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_gradient_is_what_finite_differences_give(law):
    design, slope_R = law.design(PLACES), np.array([1.0, -2.0, 0.5, 3.0])
    _, power_PR = design.evaluate(some(law))
    numeric = optimize.approx_fprime(some(law), lambda value_K: slope_R @ design.evaluate(value_K)[0], 1e-7)
    np.testing.assert_allclose(design.gradient(power_PR, slope_R), numeric, rtol=1e-4, atol=1e-6)


def test_the_ladder_s_law_is_chinchilla_s():
    log_A, log_B, alpha, beta, floor = some(LADDER)
    n, d = PLACES["parameters"], PLACES["tokens"]
    by_hand = np.exp(log_A) / n**alpha + np.exp(log_B) / d**beta + floor
    np.testing.assert_allclose(LADDER.values(some(LADDER), PLACES), by_hand, rtol=1e-12)


def test_gadre_s_law_is_that_of_the_published_code():
    # scaling/laws.py: alpha N^b + beta 6^(b/2) (M N)^b + E with M = D / N and b < 0
    alpha, beta, b, floor = np.exp(3.0), np.exp(4.0), -0.2, 0.5
    n, m = PLACES["parameters"], PLACES["tokens"] / PLACES["parameters"]
    by_hand = alpha * n**b + beta * 6 ** (b / 2) * (m * n) ** b + floor
    np.testing.assert_allclose(GADRE.values(some(GADRE), PLACES), by_hand, rtol=1e-12)


def test_centred_coordinates_give_the_same_values():
    design = LADDER.design(PLACES)
    centred, mean_P = design.centred()
    value_K = some(LADDER)
    moved_K = value_K.copy()
    moved_K[design.amplitude_P] -= value_K[design.exponent_P] * mean_P
    np.testing.assert_allclose(centred.evaluate(moved_K)[0], design.evaluate(value_K)[0], rtol=1e-12)


@pytest.mark.parametrize("kind", ["value", "error", "log_score"])
def test_a_target_turns_back_into_the_score(kind):
    target = Target(kind, 0.25)
    scores = np.array([0.3, 0.5, 0.9])
    np.testing.assert_allclose(target.back(target.of(scores)), scores, rtol=1e-12)


def test_a_score_at_chance_has_no_logarithm():
    assert np.isnan(Target("log_score", 0.25).of(np.array([0.25, 0.2]))).all()
    assert Target("log_score").of(np.array([0.25]))[0] == pytest.approx(-np.log(0.25))
