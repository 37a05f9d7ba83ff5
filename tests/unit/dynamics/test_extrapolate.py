from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.extrapolate import FEWEST, damped_line, extrapolate, last_value, line, power_law
from probes.dynamics.published import PYTHIA_TASKS, PYTHIA_TOTAL_TOKENS, pythia
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


def alone(curve, tokens=LATER):
    return extrapolate({curve.series: curve}, tokens)[curve.series]


def beside_references(curve, tokens=LATER):
    return extrapolate({curve.series: curve}, tokens, alone=False)[curve.series]


def test_a_power_law_without_a_floor_is_continued_exactly():
    for beta in (0.05, 0.2):
        curve = made(power(0.4, beta, 0.0, TOKENS, bound=1.0))
        assert beside_references(curve).mean_Q[0] == pytest.approx(power(0.4, beta, 0.0, LATER, bound=1.0), abs=1e-12)


def test_a_score_of_which_nothing_else_is_known_gains_a_part_of_what_its_law_says():
    curve = made(power(0.4, 0.2, 0.0, TOKENS, bound=1.0))
    now, law = curve.value_C[-1], power(0.4, 0.2, 0.0, LATER, bound=1.0)
    assert alone(curve).mean_Q[0] == pytest.approx(now + 0.85 * (law - now), abs=1e-12)
    short = curve.where(np.arange(len(curve)) >= len(curve) - 4)
    assert alone(short).mean_Q[0] == pytest.approx(law, abs=1e-12), "the law of a short curve looks further back"


def test_losses_stay_above_three_quarters_of_the_lowest_so_far():
    losses = 2.0 + 0.5 * (TOKENS / 1e11) ** -0.3
    curve = made(-losses, metric="ce_loss")
    floor = 0.75 * losses[-1]
    slope = np.polyfit(np.log(TOKENS[-4:]), np.log(losses[-4:] - floor), 1)[0]
    expected = floor + (losses[-1] - floor) * (LATER / TOKENS[-1]) ** slope
    assert -alone(curve).mean_Q[0] == pytest.approx(expected, abs=0.01)
    assert -alone(curve, 1e30).mean_Q[0] == pytest.approx(floor, abs=0.01)


def test_dense_checkpoints_do_not_shorten_what_is_looked_at():
    # A checkpoint every 0.1 %: the last four say nothing of the slope, all of them do.
    dense = np.geomspace(5e10, 1e11, 700)
    noisy = power(0.4, 0.2, 0.0, dense, bound=1.0) + 0.01 * np.random.default_rng(3).normal(size=len(dense))
    truth = power(0.4, 0.2, 0.0, LATER, bound=1.0)
    curve = made(noisy, tokens=dense)
    assert abs(alone(curve).mean_Q[0] - truth) < 0.01 < 0.1 < abs(line(curve, LATER) - truth)


def test_the_exponent_of_three_noisy_scores_is_held_near_those_of_the_runs_other_tasks():
    tokens = np.array([6e10, 8e10, 1e11])
    noise = [0.015, 0.0, -0.015]
    noisy = replace(made(power(0.4, 0.15, 0.0, tokens, bound=1.0) + noise, tokens=tokens), task="noisy")
    others = [
        replace(made(power(b, 0.15, 0.0, tokens, bound=1.0), tokens=tokens), task=f"{b}") for b in (0.3, 0.4, 0.5)
    ]
    truth = power(0.4, 0.15, 0.0, LATER, bound=1.0)
    together = extrapolate({curve.series: curve for curve in (noisy, *others)}, LATER)[noisy.series]
    assert abs(together.mean_Q[0] - truth) < 0.75 * abs(alone(noisy).mean_Q[0] - truth)
    # Losses have other exponents: a loss does not look at them.
    loss = made(-2.0 - 0.5 * (tokens / 1e11) ** -0.5, metric="ce_loss", tokens=tokens)
    both = extrapolate({curve.series: curve for curve in (loss, *others)}, LATER)[loss.series]
    assert both.mean_Q[0] == alone(loss).mean_Q[0]


def test_intervals_are_wider_the_further_one_looks_and_the_fewer_checkpoints_there_are():
    curve = made(power(0.4, 0.2, 0.0, TOKENS, bound=1.0))
    widths = [alone(curve, tokens).score_deviation_Q[0] for tokens in (1.1e11, 2e11, 1e12)]
    assert 0 < widths[0] < widths[1] < widths[2]
    few = made(power(0.4, 0.2, 0.0, TOKENS, bound=1.0)[-FEWEST:])
    assert alone(few).score_deviation_Q[0] > 1.5 * alone(curve).score_deviation_Q[0]
    for metric, level in (("acc", 0.25), ("ce_loss", -2.0), ("ppl", -2.0)):
        flat = made(np.full(len(TOKENS), level), metric=metric)
        band = alone(flat)
        assert band.mean_Q[0] == pytest.approx(level, abs=1e-3)
        assert band.score_deviation_Q[0] > band.curve_deviation_Q[0] > 0


def test_the_fewest_checkpoints_give_finite_numbers():
    assert FEWEST == 2
    band = alone(made(power(0.2, 0.3, 0.2, TOKENS, bound=1.0)[-FEWEST:]))
    assert np.isfinite(band.mean_Q).all() and np.isfinite(band.covariance_QQ).all()


SPARSE = (3_000, 23_000, 43_000, 73_000)
"""Checkpoints of Pythia such that three are known at 30 % of the tokens and four at 51 %."""


@pytest.mark.parametrize("last", SPARSE[2:])
def test_three_or_four_checkpoints_of_pythia_are_continued_better_than_by_every_simple_way(last):
    errors = {name: [] for name in ("predicted", "last value", "line", "damped line", "power law")}
    for num_fewshot in (0, 5):
        whole = pythia(deduped=False, num_fewshot=num_fewshot)
        for run in ("410m", "1b-bf16", "1.4b", "2.8b", "6.9b", "12b"):
            series = [replace(one, num_fewshot=num_fewshot) for one in PYTHIA_TASKS]
            curves = {one: whole.get(f"pythia-{run}", one) for one in series}
            past = {one: c.where(np.isin(c.step_C, [s for s in SPARSE if s <= last])) for one, c in curves.items()}
            found = extrapolate(past, PYTHIA_TOTAL_TOKENS)
            for one, curve in past.items():
                x, y, truth = np.log(curve.tokens_C), curve.value_C, curves[one].value_C[-1]
                slope, offset = np.polyfit(x, y, 1)
                now, ahead = slope * x[-1] + offset, slope * (np.log(PYTHIA_TOTAL_TOKENS) - x[-1])
                ways = {
                    "predicted": found[one].mean_Q[0],
                    "last value": y[-1],
                    "line": now + ahead,
                    "damped line": now + 0.6 * ahead,
                    "power law": power_law(curve, PYTHIA_TOTAL_TOKENS),
                }
                for name, value in ways.items():
                    errors[name].append(abs(value - truth))
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert len(errors["predicted"]) == 72
    assert mean.pop("predicted") < 0.9 * min(mean.values())
