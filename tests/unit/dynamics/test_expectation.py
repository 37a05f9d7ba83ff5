from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from probes.dynamics.expectation import TASK_CORRELATION, WINDOWS, Expectation, Surprise, expect, own_surfaces, pooled
from probes.dynamics.noise import unjudged_value
from probes.dynamics.surface import relevant
from probes.dynamics.table import CurveTable, RunFacts, Series
from tests.support.curve_family import LAWS, LOSS, SIZES, STEPS, TOTAL_TOKENS, changed, family, run_of, with_values

SERIES = [law.series for law in LAWS]
RUNS = [run_of(size) for size in SIZES]
RUN, OTHERS = RUNS[2], [*RUNS[:2], *RUNS[3:]]


def surprise(deviation):
    return Surprise(
        series=SERIES[0], domain="knowledge", window=1, deviation=deviation, confirmed=np.inf, seen=0.5, expected=0.5
    )


@pytest.fixture(scope="module")
def table():
    return family(offset=2.0, steps=STEPS[1::2])


@pytest.fixture(scope="module")
def expectation(table):
    return expect(table, RUN, SERIES, references=OTHERS)


def lowered(curve, by, *, last):
    """The curve with its last checkpoints worse, in the metric's own unit."""
    shift = by * (np.arange(len(curve)) >= len(curve) - last)
    return with_values(curve, curve.value_C + (shift if curve.lower_is_better else -shift))


def drawn(expectation, table, random):
    """For each series a run as the surface says a new one could come out: curve, offset and checkpoint noise."""
    for one in SERIES:
        curve = table.get(RUN, one)
        band = expectation.surfaces[one].predict(parameters=SIZES[2], tokens_Q=curve.tokens_C)
        yield with_values(curve, unjudged_value(curve, random.multivariate_normal(band.mean_Q, band.covariance_QQ)))


def test_deviations_of_runs_drawn_from_the_surface_have_mean_0_and_spread_1(table, expectation):
    random = np.random.default_rng(0)
    level, change = [], {window: [] for window in WINDOWS}
    for _ in range(24):
        for curve in drawn(expectation, table, random):
            level.append(expectation.level(curve).deviation)
            for window, found in change.items():
                found.append(expectation.change(curve, window, total_tokens=TOTAL_TOKENS).deviation)
    # Of 120 independent draws: 3 / √120 = 0.27 for the mean, 3 / √240 = 0.19 for the spread. The level is exactly
    # normal. A change is, but for the gap between the laws, which the past settles: 0.05 more.
    assert abs(np.mean(level)) < 0.27 and abs(np.std(level) - 1) < 0.19
    for found in change.values():
        assert abs(np.mean(found)) < 0.32 and abs(np.std(found) - 1) < 0.24
    assert stats.kstest(level, "norm").pvalue > 0.01


def test_deviations_of_new_runs_of_the_family_have_mean_0_and_spread_1():
    level, change = [], []
    for seed in range(4):
        whole = family(seed=seed, offset=2.0, steps=STEPS[1::2])
        new = expect(whole, RUN, SERIES, references=OTHERS)
        for one in SERIES:
            curve = whole.get(RUN, one)
            level.append(new.level(curve).deviation)
            change.append(new.change(curve, 2, total_tokens=TOTAL_TOKENS).deviation)
    # Twenty, each with a law and an offset of its own: 3 / √20 and 3 / √40.
    for found in (level, change):
        assert abs(np.mean(found)) < 0.67 and 0.53 < np.std(found) < 1.47


def test_a_drop_deviates_by_itself_over_the_deviation_expected(table, expectation):
    for law in LAWS:
        curve = table.get(RUN, law.series)
        judged = -0.05 if law is LOSS else 0.05
        for window in WINDOWS:
            before = expectation.change(curve, window, total_tokens=TOTAL_TOKENS)
            after = expectation.change(lowered(curve, 0.05, last=window), window, total_tokens=TOTAL_TOKENS)
            past = relevant(curve, TOTAL_TOKENS)
            index = np.arange(len(past))
            known = expectation.surfaces[law.series].with_run(
                past.where(index < len(past) - window), parameters=SIZES[2]
            )
            band = known.predict(parameters=SIZES[2], tokens_Q=past.tokens_C[-window:], run=RUN)
            # The deviation of a mean of W: √(1ᵀ Σ 1) / W.
            spread = np.sqrt(band.covariance_QQ.sum()) / window
            assert after.deviation - before.deviation == pytest.approx(-0.05 / spread, rel=1e-6)
            assert after.seen - before.seen == pytest.approx(-judged)
            assert after.expected == pytest.approx(before.expected) == pytest.approx(before.seen, abs=0.02)
            assert after.window == window and after.domain == law.domain and after.series == law.series


def test_the_level_is_the_latest_score_against_runs_of_this_size_alone(table, expectation):
    curve = table.get(RUN, SERIES[0])
    found = expectation.level(curve)
    band = expectation.surfaces[SERIES[0]].predict(parameters=SIZES[2], tokens_Q=curve.tokens_C[-1:])
    assert found.deviation == pytest.approx((curve.value_C[-1] - band.mean_Q[0]) / band.score_deviation_Q[0])
    assert found.seen == curve.value_C[-1] and found.window == 1
    past = with_values(curve, np.append(curve.value_C[:-1] / 2, curve.value_C[-1]))
    assert expectation.level(past) == found, "the run's own past is left out"


def test_a_run_that_was_always_a_little_below_is_low_in_level_but_does_not_fall(table, expectation):
    curve = table.get(RUN, SERIES[0])
    low = with_values(curve, curve.value_C - 0.06)
    assert expectation.level(low).deviation < -3
    assert expectation.change(low, 1, total_tokens=TOTAL_TOKENS).deviation > -2


def test_the_runs_own_scores_are_not_looked_at_where_there_are_references(table, expectation):
    absurd = changed(table, lambda c: with_values(c, c.value_C[::-1]) if c.run == RUN else c)
    tokens = np.geomspace(1e10, 3e11, 4)
    for known in (absurd, changed(table, lambda c: None if c.run == RUN else c)):
        other = expect(known, RUN, SERIES, references=[*OTHERS, RUN])
        assert other.references == tuple(OTHERS)
        for one in SERIES:
            left, right = (e.surfaces[one].predict(parameters=1e9, tokens_Q=tokens) for e in (expectation, other))
            np.testing.assert_array_equal(left.mean_Q, right.mean_Q)
            np.testing.assert_array_equal(left.covariance_QQ, right.covariance_QQ)


def test_what_references_support_is_their_sizes_and_tokens_and_a_fifth_beyond(table, expectation):
    assert (expectation.smallest_parameters, expectation.largest_parameters) == (SIZES[0], SIZES[-1])
    assert expectation.last_tokens == TOTAL_TOKENS

    def supports(parameters, tokens):
        return replace(expectation, parameters=parameters).supports(tokens)

    assert supports(SIZES[2], TOTAL_TOKENS) and supports(SIZES[2], 1e9)
    assert supports(1.19 * SIZES[-1], 1.19 * TOTAL_TOKENS) and supports(SIZES[0] / 1.19, 1e11)
    assert not supports(1.21 * SIZES[-1], 1e11)
    assert not supports(SIZES[0] / 1.21, 1e11)
    assert not supports(SIZES[2], 1.21 * TOTAL_TOKENS)
    assert not expect(table, RUN, SERIES, references=[]).supports(1e11)


def test_without_references_a_run_is_expected_from_its_own_past_without_its_last_three():
    table = family(sizes=SIZES[2:3])
    expectation = expect(table, RUN, SERIES, references=[])
    assert expectation.references == () and expectation.parameters == SIZES[2]
    assert expectation.surfaces.keys() == set(SERIES)
    fallen = changed(table, lambda c: lowered(c, 0.3, last=3))
    other = expect(fallen, RUN, SERIES, references=[])
    for one in SERIES:
        curve = table.get(RUN, one)
        assert expectation.level(curve) is None
        left, right = (
            e.surfaces[one].predict(parameters=SIZES[2], tokens_Q=curve.tokens_C) for e in (expectation, other)
        )
        np.testing.assert_array_equal(left.mean_Q, right.mean_Q)
        for window in WINDOWS:
            found = other.change(fallen.get(RUN, one), window, total_tokens=TOTAL_TOKENS)
            assert found.deviation < -5
            assert expectation.change(curve, window, total_tokens=TOTAL_TOKENS).deviation > -4


def test_own_past_needs_nine_checkpoints_after_the_very_first():
    table = family(sizes=SIZES[2:3])
    assert own_surfaces(table.until(RUN, STEPS[8] * 2e6), RUN, SERIES) == {}
    assert own_surfaces(table.until(RUN, STEPS[9] * 2e6), RUN, SERIES).keys() == set(SERIES)


def test_a_run_of_unknown_size_is_expected_from_its_own_past():
    table = family(sizes=SIZES[:3])
    unknown = {RUN: RunFacts(name=RUN, family="made", total_tokens=TOTAL_TOKENS)}
    nameless = changed(table, lambda c: c, facts=unknown)
    expectation = expect(nameless, RUN, SERIES, references=RUNS[:2])
    assert expectation.references == () and expectation.parameters == 1.0
    found = expectation.change(nameless.get(RUN, SERIES[0]), 1, total_tokens=TOTAL_TOKENS)
    assert abs(found.deviation) < 4 and found.expected == pytest.approx(found.seen, abs=0.03)


def test_references_of_unknown_size_are_left_out(table):
    nobody = RunFacts(name=OTHERS[0], family="made", total_tokens=TOTAL_TOKENS)
    partly = changed(table, lambda c: c, facts={OTHERS[0]: nobody})
    assert expect(partly, RUN, SERIES[:1], references=OTHERS).references == tuple(OTHERS[1:])


def test_nothing_is_said_of_a_series_without_a_surface_or_a_curve_too_short(table, expectation):
    stranger = replace(table.get(RUN, SERIES[0]), task="stranger")
    assert expectation.level(stranger) is None
    assert expectation.change(stranger, 1, total_tokens=TOTAL_TOKENS) is None
    curve = table.get(RUN, SERIES[0])
    two = curve.where(np.arange(len(curve)) < 2)
    assert expectation.change(two, 2, total_tokens=TOTAL_TOKENS) is None
    assert expectation.change(two, 1, total_tokens=TOTAL_TOKENS).window == 1


def test_tasks_together_deviate_by_their_sum_over_its_spread():
    assert np.isnan(pooled([]))
    assert pooled([surprise(-2.5)]) == -2.5
    deviations = np.array([-2.0, -1.0, 0.5, -3.0])
    # Var Σz = 1ᵀ R 1 with ones on R's diagonal and the correlation beside it.
    correlation = np.full((4, 4), TASK_CORRELATION) + (1 - TASK_CORRELATION) * np.eye(4)
    expected = deviations.sum() / np.sqrt(correlation.sum())
    assert pooled([surprise(one) for one in deviations]) == pytest.approx(expected)
    random = np.random.default_rng(0)
    draws = random.multivariate_normal(np.zeros(4), correlation, size=2000)
    spread = np.std([pooled([surprise(one) for one in row]) for row in draws])
    assert spread == pytest.approx(1.0, abs=3 / np.sqrt(2 * 2000))


def test_an_expectation_without_surfaces_is_silent():
    empty = Expectation("run", 1e9, ("reference",), {})
    curve = family(sizes=SIZES[:1]).curves[0]
    assert empty.level(curve) is None and empty.change(curve, 1, total_tokens=None) is None
    assert expect(CurveTable([RunFacts(name="x")], []), "x", [Series("t", "acc")], references=[]).surfaces == {}
