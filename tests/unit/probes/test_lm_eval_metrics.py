import math

import numpy as np
import pytest
from lm_eval.api import metrics

from probes.lm_eval_metrics import BOOTSTRAP_RESAMPLES, standard_error


@pytest.mark.parametrize("aggregate", [metrics.f1_score, metrics.matthews_corrcoef, metrics.median])
def test_bootstrapped_errors_are_those_of_lm_eval_with_as_many_resamples(aggregate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    rng = np.random.default_rng(0)
    pairs = [(int(gold), int(gold if rng.random() < 0.7 else 1 - gold)) for gold in rng.integers(0, 2, 60)]
    values = pairs if aggregate is not metrics.median else rng.random(60).tolist()
    expected = metrics.bootstrap_stderr(aggregate, values, iters=BOOTSTRAP_RESAMPLES)
    assert standard_error(aggregate, values) == pytest.approx(expected, rel=1e-12)


def test_closed_errors_are_those_of_lm_eval():
    values = np.random.default_rng(1).random(50).tolist()
    assert standard_error(metrics.mean, values) == pytest.approx(metrics.mean_stderr(values), rel=1e-12)


@pytest.mark.parametrize("aggregate", [metrics.perplexity, metrics.weighted_perplexity, metrics.bits_per_byte])
def test_errors_of_perplexities_agree_with_a_bootstrap(aggregate):
    rng = np.random.default_rng(2)
    weights = rng.integers(20, 200, 400)
    scores = -weights * rng.normal(1.0, 0.1, 400)
    values = list(zip(scores.tolist(), weights.tolist(), strict=True))
    if aggregate is metrics.perplexity:
        values = (scores / weights).tolist()
    drawn = [aggregate([values[i] for i in rng.integers(0, 400, 400)]) for _ in range(2000)]
    # 2,000 resamples know the error to 1.6 %; the delta method is off by the curvature, less than that here
    assert standard_error(aggregate, values) == pytest.approx(np.std(drawn), rel=0.06)


def test_the_error_of_a_brier_score_is_that_of_a_mean():
    values = [(0, np.array([0.7, 0.3])), (1, np.array([0.5, 0.5])), (1, np.array([0.9, 0.1]))]
    of_items = [2 * 0.3**2, 2 * 0.5**2, 2 * 0.9**2]
    assert metrics.brier_score(values) == pytest.approx(np.mean(of_items))
    assert standard_error(metrics.brier_score, values) == pytest.approx(np.std(of_items, ddof=1) / math.sqrt(3))


def test_one_item_or_an_unknown_aggregation_has_no_error():
    assert standard_error(metrics.mean, [0.5]) is None
    assert standard_error(max, [0.5, 0.6]) is None
