import numpy as np
import pytest
from scipy import stats

from probes.dynamics.definitions import (
    FINETASKS_SINCE_TOKENS,
    decision_accuracy,
    is_non_random,
    kendall,
    monotonicity,
    ordering_consistency,
    signal_to_noise,
)
from probes.dynamics.published import pythia
from probes.dynamics.table import Series
from tests.bench.dynamics.pythia_reference import REFERENCES, RUNS


@pytest.fixture(scope="module")
def table():
    return pythia(deduped=False, num_fewshot=0)


def curves_of(table, reference):
    return [table.get(run, Series(reference.task, reference.metric, 0)) for run in RUNS]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.task)
def test_spearman_from_step_512_is_the_reference_to_four_decimals(table, reference):
    values = np.stack([curve.since_step(512).value_C for curve in curves_of(table, reference)])
    assert tuple(round(float(value), 4) for value in monotonicity(values)) == reference.spearman


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.task)
def test_kendall_of_the_order_of_sizes_is_the_reference_to_four_decimals(table, reference):
    curves = curves_of(table, reference)
    late = np.stack([curve.value_C[curve.tokens_C >= FINETASKS_SINCE_TOKENS] for curve in curves])
    assert round(ordering_consistency(late), 4) == reference.kendall


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.task)
def test_first_and_last_scores_are_the_published_ones(table, reference):
    curves = curves_of(table, reference)
    assert tuple(curve.value_C[0] for curve in curves) == reference.first
    assert tuple(curve.value_C[-1] for curve in curves) == reference.final


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (20, 15)).astype(float)
    expected = [stats.spearmanr(np.arange(15), row).statistic for row in values]
    np.testing.assert_allclose(monotonicity(values), expected, atol=1e-12)


def test_spearman_of_a_constant_curve_is_unknown():
    assert np.isnan(monotonicity(np.ones(5)))


def test_ordering_consistency_is_the_mean_of_scipys_kendall_with_ties():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 5, (7, 12)).astype(float)
    expected = np.mean([stats.kendalltau(values[:, i], values[:, i + 1]).statistic for i in range(11)])
    assert ordering_consistency(values) == pytest.approx(expected, abs=1e-12)
    assert kendall(values[:, 0], values[:, 1]) == pytest.approx(
        stats.kendalltau(values[:, 0], values[:, 1]).statistic, abs=1e-12
    )


def test_checkpoints_where_all_runs_are_equal_are_left_out_of_the_order():
    values = np.array([[1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    assert ordering_consistency(values) == 1.0
    assert np.isnan(ordering_consistency(np.ones((3, 4))))


def test_signal_to_noise_is_relative_spread_over_relative_deviation():
    # Spread 2 about 4: 0.5; deviation 1 about 4 (9, not 10, would be divided by with ddof=1).
    last = np.array([3.0, 5.0] * 5)
    assert signal_to_noise(np.array([3.0, 4.0, 5.0]), last) == pytest.approx((2 / 4) / (1 / 4))
    assert signal_to_noise(np.array([1.0, 2.0]), np.ones(3)) == np.inf


def test_non_randomness_needs_more_than_three_deviations():
    assert is_non_random(np.array([0.26, 0.29]), chance=0.25, deviation=0.01)
    assert not is_non_random(np.array([0.26, 0.279]), chance=0.25, deviation=0.01)


def test_decision_accuracy_counts_pairs_and_lets_ties_abstain():
    small, large = np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 2.5])
    # Pairs 01, 02, 03 agree; 12 is tied small; 13 disagrees; 23 agrees.
    assert decision_accuracy(small, large) == pytest.approx(4 / 5)
    assert np.isnan(decision_accuracy(np.ones(3), large[:3]))
