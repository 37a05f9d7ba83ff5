import numpy as np
import pytest

from pretrain.config.load import compose
from pretrain.errors import ProbeError
from pretrain.schedule import learning_rate
from probes.dynamics.annealing import (
    ScheduledCurve,
    annealing_areas,
    annealing_points,
    fit_annealing,
    planned_rates,
    rates_between,
)
from probes.dynamics.fit_law import FitRefused
from probes.dynamics.laws import ANNEALING
from probes.dynamics.published import olmo_ladder
from probes.dynamics.single_run import fit_single_run
from probes.dynamics.table import Series, make_curve

TRUTH = np.array([-0.5, 0.45, 2.8, 0.5])
LOSS = Series("train", "loss")


def cosine(steps, *, warmup=200, peak=3e-4, last=0.1):
    step = np.arange(1, steps + 1)
    fall = last + (1 - last) / 2 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
    return peak * np.where(step < warmup, step / warmup, fall)


def wsd(steps, *, decay=0.2, warmup=200, peak=3e-4):
    step = np.arange(1, steps + 1)
    stable = np.minimum(step / warmup, 1)
    return peak * stable * np.clip((steps - step) / (decay * steps), 0, 1)


def made(rate, *, truth=TRUTH, every=50, noise=0.0, seed=0, run="run", until=None):
    forward, annealing = annealing_areas(rate)
    step = np.arange(every, (until or len(rate)) + 1, every)
    clean = ANNEALING.values(truth, {"forward_area": forward[step - 1], "annealing_area": annealing[step - 1]})
    values = clean * np.exp(np.random.default_rng(seed).normal(0, noise, len(step)))
    return ScheduledCurve(curve=curve(step, values, run=run), rate_S=rate)


def curve(step, values, *, run="run"):
    step, nothing = np.asarray(step, float), np.full(len(step), np.nan)
    return make_curve(step, step * 5e5, np.asarray(values, float), nothing, run=run, series=LOSS, domain="loss")


def end_of(scheduled):
    return float(scheduled.curve.value_C[-1])


def quadratic_sgd(rate, *, every=50, run="run"):
    """Expected loss of SGD on a quadratic of power-law spectrum, step by step and exactly: no law of ours in it."""
    curvature = 1.0 / np.arange(1, 401) ** 1.2
    error = 1.0 / np.arange(1, 401) ** 0.6
    losses = []
    for eta in rate * 2000:
        shrink = (1 - eta * curvature) ** 2
        error = shrink * error + eta**2 * curvature**2 * 0.01
        losses.append(2.0 + 0.5 * curvature @ error)
    step = np.arange(every, len(rate) + 1, every)
    return ScheduledCurve(curve=curve(step, np.array(losses)[step - 1], run=run), rate_S=rate)


def test_areas_are_the_double_sum_of_the_paper():
    rate = np.concatenate([np.linspace(0, 1, 6)[1:], np.linspace(1, 0.2, 9)])
    forward, annealing = annealing_areas(rate, memory=0.9)
    by_hand = np.zeros(len(rate))
    for s in range(len(rate)):
        for i in range(s + 1):
            for k in range(1, i + 1):
                by_hand[s] += max(rate[k - 1] - rate[k], 0.0) * 0.9 ** (i - k)
    np.testing.assert_allclose(annealing, by_hand, rtol=1e-12)
    np.testing.assert_allclose(forward, np.cumsum(rate))


def test_warm_up_anneals_nothing_and_a_second_rise_takes_back():
    up = annealing_areas(np.linspace(0.1, 1, 10))[1]
    assert (up == 0).all()
    again = annealing_areas(np.array([1.0, 0.5, 0.5, 1.0, 1.0]), memory=1.0)[1]
    np.testing.assert_allclose(again, [0, 0.5, 1.0, 1.0, 1.0])


def test_rates_between_records_are_straight_lines_from_zero():
    np.testing.assert_allclose(
        rates_between(np.array([2, 4, 6]), np.array([0.2, 0.2, 0.0]), num_steps=8),
        [0.1, 0.2, 0.2, 0.2, 0.1, 0.0, 0.0, 0.0],
    )


def test_planned_rates_are_those_training_sets():
    config = compose(["experiment=demo", "train.steps=40", "schedule.kind=cosine"])
    rates, sizes = planned_rates(config), config.batch_sizes
    assert len(rates) == 40
    for step in (0, 1, 17, 39):
        wanted = learning_rate(config.schedule, sizes.tokens(step), total_tokens=sizes.tokens(40), batch_sizes=sizes)
        assert rates[step] == wanted


def test_parameters_of_clean_curves_are_found():
    found = fit_annealing([made(cosine(6000)), made(wsd(6000), run="wsd")], draws=0)
    assert found.refused is None
    np.testing.assert_allclose(found.fit.value_K, TRUTH, rtol=5e-3)


def test_a_wsd_tail_is_told_from_a_cosine_and_the_run_before_its_decay():
    whole = made(wsd(6000), noise=0.002, seed=1, run="wsd")
    before = ScheduledCurve(curve=whole.curve.until(0.8 * whole.curve.tokens_C[-1]), rate_S=whole.rate_S)
    found = fit_annealing([made(cosine(6000), noise=0.002), before], draws=60)
    truth = end_of(made(wsd(6000)))
    predicted = found.predict(whole.rate_S, 6000)
    assert predicted.value == pytest.approx(truth, rel=0.004)
    assert predicted.low < truth < predicted.high
    in_tokens = fit_single_run(before.curve, draws=0).predict({"tokens": whole.curve.tokens_C[-1]}).value
    assert abs(in_tokens - truth) > 3 * abs(predicted.value - truth)


def test_a_longer_cosine_is_told_from_a_shorter_one():
    found = fit_annealing([made(cosine(4000), noise=0.001)], draws=0)
    assert found.predict(cosine(12_000), 12_000).value == pytest.approx(end_of(made(cosine(12_000))), rel=0.01)


def test_a_schedule_of_another_world_is_told_better_than_by_tokens():
    # The truth is SGD on a quadratic, which obeys the law only about: independent of what is fitted.
    whole = quadratic_sgd(wsd(5000), run="wsd")
    before = ScheduledCurve(curve=whole.curve.until(0.8 * whole.curve.tokens_C[-1]), rate_S=whole.rate_S)
    found = fit_annealing([quadratic_sgd(cosine(5000)), before], draws=0)
    in_tokens = fit_single_run(before.curve, draws=0)
    law = abs(found.predict(whole.rate_S, 5000).value - end_of(whole))
    tokens = abs(in_tokens.law.value_at(in_tokens.value_K, {"tokens": whole.curve.tokens_C[-1]}) - end_of(whole))
    assert law < 0.5 * tokens


def test_sizes_may_be_fitted_together():
    def sized(parameters, rate, **settings):
        one = made(rate, run=f"{parameters:g}-{len(rate)}", **settings)
        values = one.curve.value_C + 30 / parameters**0.25
        return ScheduledCurve(
            curve=curve(one.curve.step_C, values, run=one.curve.run), rate_S=rate, parameters=parameters
        )

    whole = sized(4e8, wsd(4000))
    small = [sized(n, wsd(4000), noise=0.001, seed=seed) for seed, n in enumerate((2.5e7, 1e8))]
    before = ScheduledCurve(
        curve=whole.curve.until(0.8 * whole.curve.tokens_C[-1]), rate_S=whole.rate_S, parameters=4e8
    )
    found = fit_annealing([*small, before], draws=0)
    assert found.fit.law.name == "annealing-sizes"
    assert found.predict(whole.rate_S, 4000, parameters=4e8).value == pytest.approx(end_of(whole), rel=0.003)


def test_a_rate_that_never_fell_tells_nothing_of_a_tail():
    rate = wsd(5000)
    found = fit_annealing([made(rate, until=3900)], draws=0)
    assert "different values of annealing area" in found.refused
    with pytest.raises(FitRefused):
        found.predict(rate, 5000)


def test_a_tail_far_beyond_what_has_fallen_is_refused():
    found = fit_annealing([made(cosine(8000), until=1800)], draws=0)
    assert "annealing area" in (found.fit.why_not(found.place(cosine(8000), 8000)) or "")


def test_the_best_memory_is_taken():
    found = fit_annealing([made(cosine(4000)), made(wsd(4000), run="w")], memories=(0.99, 0.999, 0.9995), draws=0)
    assert found.memory == 0.999


def test_a_curve_beyond_its_rates_is_an_error():
    with pytest.raises(ProbeError, match="the learning rates of 100 steps are known"):
        annealing_points([ScheduledCurve(curve=curve([50, 200], [3.0, 2.9]), rate_S=np.ones(100))])


def test_long_runs_of_the_ladder_are_told_from_short_ones_and_their_beginning():
    from tests.bench.dynamics.schedules import ladder_curve

    table, c4 = olmo_ladder(), Series("c4_en-validation", "ce_loss")
    known = [ladder_curve(table, f"760M-{length}xC", c4) for length in (1, 2)]
    whole = ladder_curve(table, "760M-10xC", c4)
    found = fit_annealing([*known, ladder_curve(table, "760M-10xC", c4, seen=0.3)], draws=0)
    assert found.predict(whole.rate_S, len(whole.rate_S)).value == pytest.approx(end_of(whole), rel=0.006)
