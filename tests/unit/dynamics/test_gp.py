import numpy as np
import pytest
from scipy import optimize

from probes.dynamics.gp import Process, Scores, Term, _Likelihood, fit, scale_of

TERMS = (
    Term(name="constant", kind="constant", deviation=0.6),
    Term(name="size", kind="linear", columns=((0, 1),), deviation=0.4),
    Term(name="bend", kind="product", columns=((1, 1),), deviation=0.3),
    Term(name="smooth", kind="smooth", columns=((0,), (1,)), deviation=0.7, lengths=(0.8, 0.5)),
    Term(name="run", kind="constant", deviation=0.3, within=(2,)),
    Term(name="run over tokens", kind="smooth", columns=((1,),), deviation=0.5, lengths=(0.6,), within=(2,)),
)
NUM_DEVIATIONS, NUM_LENGTHS = 6, 3
JITTER = 1e-8


def made(count=18, *, seed=0, runs=3):
    random = np.random.default_rng(seed)
    feature = np.column_stack([random.normal(size=(count, 2)), random.integers(0, runs, count)])
    value = 0.5 + 0.1 * feature[:, 1] + 0.03 * feature[:, 2] + 0.02 * random.normal(size=count)
    return Scores(feature, value, random.uniform(0.01, 0.03, count))


def shifted(terms=TERMS, *, seed=1, by=0.3):
    theta = Process.prior(terms).theta
    return theta + by * np.random.default_rng(seed).normal(size=len(theta))


def dense(terms, theta, left, right):
    """The kernel by the words of `Term`, point by point."""
    deviations, lengths = np.exp(theta[: len(terms)]), list(np.exp(theta[len(terms) : -1]))
    matrix = np.zeros((len(left), len(right)))
    for term, deviation in zip(terms, deviations, strict=True):
        own = [lengths.pop(0) for _ in term.lengths]
        for i, x in enumerate(left.feature_PF):
            for j, y in enumerate(right.feature_PF):
                if all(x[c] == y[c] for c in term.within):
                    matrix[i, j] += deviation**2 * alike(term, own, x, y)
    return matrix


def alike(term, lengths, x, y):
    columns = [c for group in term.columns for c in group]
    if term.kind == "constant":
        return 1.0
    if term.kind == "linear":
        return sum(x[c] * y[c] for c in columns)
    if term.kind == "product":
        return np.prod([x[c] * y[c] for c in columns])
    groups = zip(term.columns, lengths, strict=True)
    return np.exp(-0.5 * sum(((x[c] - y[c]) / length) ** 2 for group, length in groups for c in group))


def standardised(scores):
    centre, scale = scores.value_P.mean(), scores.value_P.std()
    return (scores.value_P - centre) / scale, scores.noise_P / scale, centre, scale


def test_the_likelihood_is_the_dense_formula():
    scores = made()
    theta = shifted()
    y, noise, *_ = standardised(scores)
    matrix = dense(TERMS, theta, scores, scores) + np.diag((np.exp(theta[-1]) * noise) ** 2 + JITTER)
    expected = 0.5 * y @ np.linalg.inv(matrix) @ y + 0.5 * np.linalg.slogdet(matrix)[1]
    # 1e-9: a condition number of 1e4 or so times double precision.
    assert _Likelihood(TERMS, scores).negative_log(theta)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_the_likelihood_is_that_of_differences(seed):
    likelihood = _Likelihood(TERMS, made(seed=seed))
    theta = shifted(seed=seed)
    assert len(theta) == NUM_DEVIATIONS + NUM_LENGTHS + 1
    gradient = likelihood.negative_log(theta)[1]
    off = optimize.check_grad(
        lambda t: likelihood.negative_log(t)[0], lambda t: likelihood.negative_log(t)[1], theta, epsilon=1e-6
    )
    # Forward differences of a value near 10: truncation and rounding are each about 1e-5.
    assert off < 2e-4 and np.linalg.norm(gradient) > 1.0


def test_the_posterior_is_the_textbook_formula():
    scores, at = made(), made(7, seed=9)
    theta = shifted()
    mean_Q, covariance_QQ = Process(TERMS, theta).posterior(scores, at)
    y, noise, centre, scale = standardised(scores)
    inverse = np.linalg.inv(dense(TERMS, theta, scores, scores) + np.diag((np.exp(theta[-1]) * noise) ** 2 + JITTER))
    cross = dense(TERMS, theta, scores, at)
    np.testing.assert_allclose(mean_Q, centre + scale * cross.T @ inverse @ y, rtol=0, atol=1e-9)
    expected = scale**2 * (dense(TERMS, theta, at, at) - cross.T @ inverse @ cross)
    np.testing.assert_allclose(covariance_QQ, expected, rtol=0, atol=1e-10)


def test_a_linear_term_is_bayesian_linear_regression():
    # Weights of prior N(0, s²): S = (XᵀX/σ² + 1/s²)⁻¹, mean S Xᵀy/σ² (Bishop 2006, 3.53-3.54): other algebra.
    scores, at = made(30), made(5, seed=3)
    process = Process.prior((Term(name="weights", kind="linear", columns=((0, 1),), deviation=0.7),))
    mean_Q, covariance_QQ = process.posterior(scores, at)
    y, noise, centre, scale = standardised(scores)
    x, x_new = scores.feature_PF[:, :2], at.feature_PF[:, :2]
    precision = np.diag(1.0 / (noise**2 + JITTER))
    spread = np.linalg.inv(x.T @ precision @ x + np.eye(2) / 0.7**2)
    np.testing.assert_allclose(mean_Q, centre + scale * x_new @ spread @ x.T @ precision @ y, rtol=0, atol=1e-8)
    np.testing.assert_allclose(covariance_QQ, scale**2 * x_new @ spread @ x_new.T, rtol=0, atol=1e-8)


def test_within_makes_runs_independent():
    terms = (Term(name="run", kind="smooth", columns=((1,),), deviation=1.0, lengths=(0.5,), within=(2,)),)
    scores, process = made(runs=2), Process.prior(terms)
    run = scores.feature_PF[:, 2]
    first, unseen = Scores(np.array([[0.0, 0.1, 0.0]]), np.zeros(1), np.ones(1)), np.array([[0.0, 0.1, 5.0]])
    both = Scores(np.concatenate([first.feature_PF, unseen]), np.zeros(2), np.ones(2))
    mean_Q, covariance_QQ = process.posterior(scores, both)
    assert mean_Q[1] == scale_of(scores)[0], "a run without scores is at the mean"
    assert covariance_QQ[0, 1] == 0.0
    # The other run's scores in another order: mean and spread, by which all are standardised, stay.
    shuffled = scores.value_P.copy()
    shuffled[run == 1] = shuffled[run == 1][::-1]
    other = Scores(scores.feature_PF, shuffled, scores.noise_P)
    assert process.posterior(other, both)[0][0] == pytest.approx(mean_Q[0], abs=1e-12)
    shuffled[run == 0] = shuffled[run == 0][::-1]
    assert abs(process.posterior(other, both)[0][0] - mean_Q[0]) > 1e-4


def test_columns_of_one_inner_tuple_share_a_length_and_only_they():
    shared = (Term(name="smooth", kind="smooth", columns=((0, 1),), lengths=(0.5,)),)
    apart = (Term(name="smooth", kind="smooth", columns=((0,), (1,)), lengths=(0.5, 1.5)),)
    assert len(Process.prior(shared).theta) == 3 and len(Process.prior(apart).theta) == 4
    scores, at = made(), made(4, seed=2)

    def turned(points):
        cos, sin = np.cos(0.8), np.sin(0.8)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        return Scores(points.feature_PF @ turn.T, points.value_P, points.noise_P)

    for terms, same in ((shared, True), (apart, False)):
        before, after = (Process.prior(terms).posterior(f(scores), f(at))[0] for f in (lambda p: p, turned))
        assert np.allclose(before, after, rtol=0, atol=1e-9) is same


def test_equal_lengths_apart_are_a_shared_one():
    shared = (Term(name="smooth", kind="smooth", columns=((0, 1),), lengths=(0.5,)),)
    apart = (Term(name="smooth", kind="smooth", columns=((0,), (1,)), lengths=(0.5, 0.5)),)
    found = [Process.prior(terms).posterior(made(), made(4, seed=2))[0] for terms in (shared, apart)]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12)


def test_the_fit_is_the_most_probable_by_a_search_without_gradients():
    terms = (
        Term(name="slope", kind="linear", columns=((1,),), deviation=0.5),
        Term(name="smooth", kind="smooth", columns=((1,),), deviation=0.5, lengths=(0.7,)),
    )
    tasks = [made(9, seed=seed) for seed in (3, 4)]
    medians, spread = np.log([0.5, 0.5, 0.7, 1.0]), np.array([0.7, 0.7, 0.5, 0.4])

    def improbable(theta):
        total = 0.5 * np.sum(((theta - medians) / spread) ** 2)
        for scores in tasks:
            y, noise, *_ = standardised(scores)
            matrix = dense(terms, theta, scores, scores) + np.diag((np.exp(theta[-1]) * noise) ** 2 + JITTER)
            total += 0.5 * y @ np.linalg.solve(matrix, y) + 0.5 * np.linalg.slogdet(matrix)[1]
        return total

    found = fit(terms, tasks).theta
    searched = optimize.minimize(improbable, medians, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    # L-BFGS-B stops at a relative gain of 2e-9, Nelder-Mead at 1e-3 in theta.
    assert improbable(found) <= searched.fun + 1e-5
    np.testing.assert_allclose(found, searched.x, atol=0.02)


def test_the_noise_factor_of_a_simulated_curve_is_found():
    random = np.random.default_rng(5)
    tasks = []
    for _ in range(4):
        position = np.sort(random.uniform(-1, 1, 60))
        value = np.tanh(2 * position) + 0.06 * random.normal(size=60)
        tasks.append(Scores(position[:, None], value, np.full(60, 0.02)))
    terms = (Term(name="smooth", kind="smooth", columns=((0,),), deviation=1.0, lengths=(0.7,)),)
    process = fit(terms, tasks)
    # 240 residuals give the standard deviation to 1/√480 = 5 %; the prior pulls by less than that.
    assert process.noise_factor == pytest.approx(3.0, rel=0.12)
    at = Scores(np.array([[0.1], [3.0]]), np.zeros(2), np.full(2, 0.02))
    _, covariance_QQ = process.posterior(tasks[0], at)
    expected = np.sqrt(np.diag(covariance_QQ) + (0.02 * process.noise_factor) ** 2)
    np.testing.assert_allclose(process.deviation(covariance_QQ, at), expected)
    assert expected[1] > 5 * expected[0], "far from all scores nothing is known"


def test_a_fit_begun_elsewhere_ends_at_the_same_place():
    tasks = [made(40, seed=seed) for seed in (6, 7)]
    first = fit(TERMS, tasks)
    second = fit(TERMS, tasks, start=Process(TERMS, first.theta + 0.1))
    np.testing.assert_allclose(second.theta, first.theta, atol=0.05)


def test_constant_scores_are_standardised_by_their_noise():
    scores = Scores(np.zeros((3, 1)), np.full(3, 0.25), np.full(3, 0.01))
    assert scale_of(scores) == (0.25, 0.01)
    assert scale_of(Scores(np.zeros((3, 1)), np.full(3, 0.25), np.zeros(3))) == (0.25, 1e-9)
    mean_Q, covariance_QQ = fit(TERMS[:1], [scores]).posterior(scores, scores)
    assert np.allclose(mean_Q, 0.25) and np.isfinite(covariance_QQ).all()


def test_scores_are_chosen_by_masks_and_by_indices():
    scores = made()
    chosen = scores.where(scores.feature_PF[:, 2] == 1)
    np.testing.assert_array_equal(chosen.value_P, scores.value_P[scores.feature_PF[:, 2] == 1])
    assert len(scores.where(np.array([4, 2]))) == 2 and scores.where(np.array([4, 2])).noise_P[0] == scores.noise_P[4]
