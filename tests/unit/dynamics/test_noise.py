import numpy as np
import pytest

from probes.dynamics.noise import (
    STDERR_SHARE,
    checkpoint_noise,
    judged_value,
    log_tokens,
    noise_of,
    smooth,
)
from probes.dynamics.table import Series, make_curve

STEPS = np.array([512, 1000, 3000, *range(13000, 144000, 10000)], float)


def curve(values, *, tokens=STEPS * 2e6, stderr=np.nan, metric="acc"):
    return make_curve(
        np.arange(len(values), dtype=float),
        np.asarray(tokens, float)[: len(values)],
        np.asarray(values, float),
        np.full(len(values), stderr),
        run="run",
        series=Series("task", metric),
        domain="knowledge",
    )


def rising(tokens):
    return 0.7 - 0.5 * (tokens / 1e9) ** -0.3


def test_noise_of_a_known_deviation_is_found_on_a_bent_curve_with_wide_gaps():
    rng = np.random.default_rng(0)
    tokens = STEPS * 2e6
    draws = rising(tokens) + rng.normal(0, 0.008, (4000, len(tokens)))
    found = checkpoint_noise(tokens, draws)
    # The median of 13 correlated differences scatters by a quarter; on the mean of 4000 curves bias alone is left.
    assert np.median(found) == pytest.approx(0.008, rel=0.1)


def test_a_line_in_log_tokens_has_no_noise_whatever_its_checkpoints():
    tokens = STEPS * 2e6
    assert checkpoint_noise(tokens, 0.1 * np.log(tokens)) < 1e-6


def test_noise_is_not_raised_by_one_jump():
    rng = np.random.default_rng(1)
    tokens = np.arange(1, 41) * 1e9
    steady = 0.5 + rng.normal(0, 0.01, (200, 40))
    jumped = steady + np.where(np.arange(40) >= 25, -0.3, 0.0)
    assert np.mean(checkpoint_noise(tokens, jumped)) == pytest.approx(
        np.mean(checkpoint_noise(tokens, steady)), rel=0.15
    )


def test_noise_has_a_floor_in_standard_errors():
    assert noise_of(curve(np.linspace(0.3, 0.31, 17), stderr=0.02)) == pytest.approx(STDERR_SHARE * 0.02)


def test_noise_of_many_curves_at_once_is_that_of_each():
    rng = np.random.default_rng(2)
    tokens = np.sort(rng.uniform(1e9, 1e11, 20))
    values, errors = rng.normal(0.5, 0.02, (3, 4, 20)), np.full((3, 4, 20), 0.01)
    together = checkpoint_noise(tokens, values, errors)
    assert together.shape == (3, 4)
    assert together[2, 1] == checkpoint_noise(tokens, values[2, 1], errors[2, 1])


def test_noise_below_three_checkpoints_is_unknown():
    assert np.isnan(noise_of(curve([0.3, 0.4])))


def test_a_checkpoint_before_training_has_a_finite_place():
    np.testing.assert_allclose(np.exp(log_tokens(np.array([0.0, 4.0, 8.0]))), [2.0, 4.0, 8.0])


def test_more_is_better_in_what_is_judged_and_perplexities_are_nats():
    np.testing.assert_allclose(judged_value(curve([1.0, 0.9], metric="gold_bpb")), [-1.0, -0.9])
    np.testing.assert_allclose(judged_value(curve([np.e**3, np.e**2], metric="ppl")), [-3.0, -2.0])
    np.testing.assert_allclose(judged_value(curve([0.2, 0.3])), [0.2, 0.3])


def test_smoothing_leaves_a_line_in_log_tokens_as_it_is():
    tokens = STEPS * 2e6
    smoothed = smooth(curve(0.1 * np.log(tokens)))
    np.testing.assert_allclose(smoothed.value_C, 0.1 * np.log(tokens), atol=1e-9)


def test_a_smoothed_curve_is_nearer_to_the_truth_than_its_scores_are():
    rng = np.random.default_rng(3)
    tokens = np.arange(1, 81) * 2e9
    scores = [rising(tokens) + rng.normal(0, 0.01, 80) for _ in range(20)]
    errors = [np.mean((smooth(curve(one, tokens=tokens)).value_C - rising(tokens)) ** 2) for one in scores]
    assert np.mean(errors) < 0.35 * 0.01**2


def test_the_80_percent_band_holds_the_curve_about_80_percent_of_the_time():
    rng = np.random.default_rng(4)
    tokens = np.arange(1, 61) * 2e9
    inside = []
    for _ in range(100):
        smoothed = smooth(curve(rising(tokens) + rng.normal(0, 0.01, 60), tokens=tokens))
        inside.append((smoothed.low_C <= rising(tokens)) & (rising(tokens) <= smoothed.high_C))
    # Somewhat below 80%: the width is chosen on the same scores, and the smoothing's bias is not in the band.
    assert 0.68 < np.mean(inside) < 0.9


def test_too_few_checkpoints_are_left_alone_without_a_band():
    smoothed = smooth(curve([0.3, 0.5]))
    np.testing.assert_array_equal(smoothed.value_C, [0.3, 0.5])
    assert np.isnan(smoothed.low_C).all()
