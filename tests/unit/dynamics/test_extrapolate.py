import numpy as np
import pytest

from probes.dynamics.extrapolate import FEWEST, damped_line, extrapolate, last_value, line, power_law
from probes.dynamics.noise import noise_of
from probes.dynamics.table import Series, make_curve

TOKENS = np.array([1e9, 2e9, 4e9, *np.arange(1e10, 1e11, 1e10)])
LATER = 3e11
METRICS = ("acc", "ce_loss", "ppl")


def made(judged, *, metric="acc", tokens=TOKENS):
    """The curve of a metric from scores of which more is better (perplexities: nats, turned)."""
    judged = np.asarray(judged, float)
    value = {"acc": judged, "ce_loss": -judged, "ppl": np.exp(-judged)}[metric]
    count = len(value)
    return make_curve(
        np.arange(count) * 1e4,
        tokens[-count:],
        value,
        np.full(count, np.nan),
        run="run",
        series=Series("task", metric),
        domain="knowledge",
        chance=0.25 if metric == "acc" else np.nan,
    )


def power(b, beta, floor, tokens, *, bound):
    return bound - (b * (tokens / 1e11) ** -beta + floor)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("beta", [0.1, 0.4, 1.0])
def test_a_power_law_is_continued_exactly(metric, beta):
    bound, b, floor = (1.0, 0.15, 0.2) if metric == "acc" else (0.0, 0.3, 1.9)
    curve = made(power(b, beta, floor, TOKENS, bound=bound), metric=metric)
    # 2e-4: thousandth weights of the start values against residuals in hundredths, and the search's own tolerance.
    assert power_law(curve, LATER) == pytest.approx(power(b, beta, floor, LATER, bound=bound), abs=2e-4)


def test_a_power_law_held_by_priors_is_nearly_so_and_calmer_on_noise():
    truth = power(0.15, 0.4, 0.2, LATER, bound=1.0)
    clean = made(power(0.15, 0.4, 0.2, TOKENS, bound=1.0))
    assert power_law(clean, LATER, prior=True) == pytest.approx(truth, abs=0.01)
    random = np.random.default_rng(0)
    errors = {True: [], False: []}
    for _ in range(5):
        noisy = made(power(0.15, 0.4, 0.2, TOKENS[-5:], bound=1.0) + 0.01 * random.normal(size=5))
        for prior, found in errors.items():
            found.append(power_law(noisy, LATER, prior=prior) - truth)
    assert np.std(errors[True]) < np.std(errors[False])


@pytest.mark.parametrize("metric", METRICS)
def test_a_line_in_log_tokens_is_continued_exactly(metric):
    judged = 0.5 + 0.03 * np.log(TOKENS / 1e11) - (0.0 if metric == "acc" else 3.0)
    curve = made(judged, metric=metric)
    slope, end = 0.03, judged[-1]
    rest = np.log(LATER / TOKENS[-1])
    assert line(curve, LATER) == pytest.approx(end + slope * rest, abs=1e-12)
    assert damped_line(curve, LATER) == pytest.approx(end + 0.6 * slope * rest, abs=1e-12)
    assert line(curve, LATER, damping=0.0) == pytest.approx(end, abs=1e-12)
    assert last_value(curve) == pytest.approx(end, abs=1e-15)


def test_a_line_is_least_squares_through_the_last_four():
    judged = np.random.default_rng(1).uniform(0.4, 0.6, len(TOKENS))
    curve, x = made(judged), np.log(TOKENS[-4:])
    y = judged[-4:]
    slope = np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2)
    assert line(curve, LATER) == pytest.approx(y.mean() + slope * (np.log(LATER) - x.mean()), abs=1e-10)
    assert line(made(judged[:1]), LATER) == judged[0], "one checkpoint has no slope"


@pytest.mark.parametrize("metric", METRICS)
def test_the_prediction_is_the_mean_of_the_four_ways(metric):
    noise = 0.005 * np.random.default_rng(2).normal(size=len(TOKENS))
    curve = made(power(0.2, 0.3, 0.2, TOKENS, bound=1.0 if metric == "acc" else 0.0) + noise, metric=metric)
    band = extrapolate(curve, LATER)
    ways = [power_law(curve, LATER), power_law(curve, LATER, prior=True), line(curve, LATER), damped_line(curve, LATER)]
    assert band.mean_Q[0] == pytest.approx(np.mean(ways))
    # What the ways differ by, three tenths of what is still to come, and the noise of the last three's mean.
    last = {"acc": curve.value_C, "ce_loss": -curve.value_C, "ppl": -np.log(curve.value_C)}[metric][-3:]
    parts = [np.std(ways), 0.3 * (np.mean(ways) - last.mean()), noise_of(curve) / np.sqrt(3)]
    assert band.curve_deviation_Q[0] == pytest.approx(np.linalg.norm(parts))
    assert band.score_deviation_Q[0] == pytest.approx(np.linalg.norm([*parts, noise_of(curve)]))


def test_intervals_are_wider_the_further_one_looks_and_never_of_no_width():
    curve = made(power(0.2, 0.3, 0.2, TOKENS, bound=1.0))
    widths = [extrapolate(curve, tokens).score_deviation_Q[0] for tokens in (1.1e11, 2e11, 1e12)]
    assert 0 < widths[0] < widths[1] < widths[2]
    for metric, level in (("acc", 0.25), ("ce_loss", -2.0), ("ppl", -2.0)):
        flat = made(np.full(len(TOKENS), level), metric=metric)
        band = extrapolate(flat, LATER)
        assert band.mean_Q[0] == pytest.approx(level, abs=1e-3)
        assert band.score_deviation_Q[0] > band.curve_deviation_Q[0] > 0


def test_the_fewest_checkpoints_give_finite_numbers():
    band = extrapolate(made(power(0.2, 0.3, 0.2, TOKENS, bound=1.0)[-FEWEST:]), LATER)
    assert np.isfinite(band.mean_Q).all() and np.isfinite(band.covariance_QQ).all()
