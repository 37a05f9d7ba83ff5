from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.noise import judged_value, noise_of
from probes.dynamics.surface import MOST_CHECKPOINTS, Origin, _thinned, fit_laws, fit_surfaces, relevant
from probes.dynamics.table import CurveTable, RunFacts
from tests.support.curve_family import (
    ABILITIES,
    LAWS,
    LOSS,
    SIZES,
    STEPS,
    TOTAL_TOKENS,
    changed,
    family,
    run_of,
    with_values,
)

SERIES = [law.series for law in LAWS]
LARGEST = SIZES[-1]
FEWER = STEPS[1::2]
"""Every other checkpoint: inference costs the cube of their number."""
END = np.array([TOTAL_TOKENS])
N = np.repeat([0.2, 0.4, 0.8, 1.6, 3.2, 6.4], 15)
D = np.tile(np.geomspace(0.02, 3.0, 15), 6)
POSITION = np.column_stack([np.log10(N), np.log10(D)])


def surfaces(table, laws=LAWS, runs=None):
    return fit_surfaces(table, runs=list(table.runs) if runs is None else runs, series=[law.series for law in laws])


def off(surface, law, *, parameters=LARGEST, tokens=END, run=None):
    """Error of the curve in units of the law's checkpoint noise, with the deviation claimed in the same."""
    band = surface.predict(parameters=parameters, tokens_Q=np.asarray(tokens), run=run)
    return (band.mean_Q - law.judged(parameters, tokens)) / law.noise, band.curve_deviation_Q / law.noise


@pytest.fixture(scope="module")
def whole():
    table = family()
    return table, surfaces(table)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 5e-3])
@pytest.mark.parametrize("form", ["power", "direct"])
@pytest.mark.parametrize("kind", ["accuracy", "loss"])
def test_the_parameters_of_a_known_law_are_recovered(noise, form, kind):
    a, alpha, b, beta, floor = truth = (0.5, 0.4, 0.4, 0.35, 1.7) if kind == "loss" else (0.12, 0.4, 0.15, 0.35, 0.2)
    total = a * N**-alpha + b * D**-beta
    if form == "power":
        score = -(total + floor) if kind == "loss" else 1.0 - (total + floor)
    elif kind == "loss":  # log q = … + log E
        score = -floor * np.exp(total)
    else:
        score = 0.25 + 0.75 * np.exp(-total)
    bound, chance = (0.0, float("nan")) if kind == "loss" else (1.0, 0.25)
    seen = score + noise * np.random.default_rng(0).normal(size=len(score))
    laws = fit_laws(POSITION, seen, noise=noise, bound=bound, chance=chance)
    found = np.exp(getattr(laws, form))
    # 90 scores: parameters are known to some noise deviations over what they move; least squares leave the curve an
    # error of noise · √(5 / 90) = 0.24 noise, of which this is twice.
    np.testing.assert_allclose(found, truth[: len(found)], rtol=0.01 + 20 * noise)
    assert np.sqrt(np.mean((laws.both(POSITION)[form == "direct"] - score) ** 2)) < 0.5 * noise


def test_both_laws_are_their_formulas():
    laws = fit_laws(POSITION, 1.0 - 0.1 * N**-0.4 - 0.2 * D**-0.3 - 0.2, noise=0.01, bound=1.0, chance=0.25)
    a, alpha, b, beta, floor = np.exp(laws.power)
    power, direct = laws.both(POSITION)
    np.testing.assert_allclose(power, 1.0 - (a * N**-alpha + b * D**-beta + floor), rtol=1e-12)
    a, alpha, b, beta = np.exp(laws.direct)
    np.testing.assert_allclose(direct, 0.25 + 0.75 * np.exp(-a * N**-alpha - b * D**-beta), rtol=1e-12)
    assert laws.room == 0.75 and laws.bound == 1.0


def test_positions_are_decades_from_the_origin():
    position = Origin(9.0, 11.0).positions(1e10, np.array([1e11, 1e12]), 3.0)
    np.testing.assert_allclose(position, [[1.0, 0.0, 3.0], [1.0, 1.0, 3.0]], atol=1e-12)


def test_known_curves_are_met_within_the_grid_to_a_fraction_of_checkpoint_noise(whole):
    _, found = whole
    tokens = np.geomspace(2e10, TOTAL_TOKENS, 9)
    errors = [off(found[law.series], law, parameters=1.1e9, tokens=tokens)[0] for law in LAWS]
    assert np.sqrt(np.mean(np.square(errors))) < 0.5


def test_a_size_twice_the_largest_is_predicted_within_what_the_band_says(whole):
    _, found = whole
    for law in LAWS:
        error, deviation = off(found[law.series], law, parameters=2 * LARGEST)
        assert abs(error[0]) < 2.5 * deviation[0] and abs(error[0]) < 3.0


def test_the_error_shrinks_with_the_runs_own_past_fitted_or_added():
    shares = (0.0, 0.3, 0.9)
    errors = {way: {share: [] for share in shares} for way in ("fitted", "added")}
    deviations = {share: [] for share in shares}
    run, some = run_of(LARGEST), LAWS[::2]
    for seed in range(2):
        table = family(seed=seed, offset=5.0, steps=FEWER)
        others = [name for name in table.runs if name != run]
        before = surfaces(table, some, runs=others)
        for share in shares:
            known = table.until(run, share * TOTAL_TOKENS)
            after = surfaces(known, some, runs=[*others, run]) if share else before
            for law in some:
                # What the run is truly off the law: the mean of all its noise but for a quarter of a deviation.
                curve = table.get(run, law.series)
                mean_off = np.mean(judged_value(curve) - law.judged(LARGEST, curve.tokens_C)) / law.noise
                error, deviation = off(after[law.series], law, run=run)
                errors["fitted"][share].append(abs(error[0] - mean_off))
                deviations[share].append(deviation[0])
                added = before[law.series]
                if share:
                    past = relevant(known.get(run, law.series), TOTAL_TOKENS)
                    added = added.with_run(past, parameters=LARGEST)
                errors["added"][share].append(abs(off(added, law, run=run)[0][0] - mean_off))
    for of_way in errors.values():
        mean = {share: np.mean(values) for share, values in of_way.items()}
        assert mean[0.3] < 0.5 * mean[0.0] and mean[0.9] < 0.75 * mean[0.3]
    assert np.mean(deviations[0.0]) > np.mean(deviations[0.3]) > np.mean(deviations[0.9])


def test_what_is_learnt_of_another_run_changes_nothing_of_the_surface_it_came_from(whole):
    table, found = whole
    surface, law = found[SERIES[0]], LAWS[0]
    before = surface.predict(parameters=LARGEST, tokens_Q=END).mean_Q
    new = with_values(table.get(run_of(LARGEST), law.series), table.get(run_of(LARGEST), law.series).value_C - 0.05)
    extended = surface.with_run(replace(new, run="new"), parameters=LARGEST)
    np.testing.assert_array_equal(surface.predict(parameters=LARGEST, tokens_Q=END).mean_Q, before)
    shift = extended.predict(parameters=LARGEST, tokens_Q=END, run="new").mean_Q - before
    assert shift[0] == pytest.approx(-0.05, abs=0.01)


def test_the_band_widens_outside_the_support(whole):
    _, found = whole
    for law in LAWS:
        by_size = [off(found[law.series], law, parameters=size)[1][0] for size in (SIZES[2], 1.2e10, 5e10, 4e11)]
        by_tokens = off(found[law.series], law, parameters=SIZES[2], tokens=TOTAL_TOKENS * np.array([1.0, 3.0, 30.0]))
        assert np.all(np.diff(by_size) > 0) and by_size[-1] > 4 * by_size[0]
        assert np.all(np.diff(by_tokens[1]) > 0) and by_tokens[1][-1] > 3 * by_tokens[1][0]


def test_where_the_laws_part_the_band_holds_both(whole):
    _, found = whole
    gaps = []
    for law in LAWS:
        surface = found[law.series]
        band = surface.predict(parameters=4e11, tokens_Q=END)
        power, direct = surface.laws.both(surface.origin.positions(4e11, END, 0.0))
        assert band.curve_deviation_Q[0] > 0.5 * abs(power[0] - direct[0])
        gaps.append(0.5 * abs(power[0] - direct[0]) / law.noise)
    assert max(gaps) > 5, "at seventy times the largest size they do part"


def test_a_new_score_is_the_curve_and_its_noise(whole):
    _, found = whole
    estimates = []
    for law in LAWS:
        tokens = np.geomspace(1e10, 3e11, 4)
        band = found[law.series].predict(parameters=3e9, tokens_Q=tokens)
        noise = np.sqrt(band.score_deviation_Q**2 - band.curve_deviation_Q**2)
        np.testing.assert_allclose(noise, noise[0], rtol=1e-6)
        assert np.linalg.eigvalsh(band.covariance_QQ).min() > 0
        estimates.append(noise[0] / law.noise)
    # The median of five runs' median differences scatters by 0.20 (simulated, 4,000 curves): three of these, of each
    # and of the mean of five.
    np.testing.assert_allclose(estimates, 1.0, atol=0.6)
    assert np.mean(estimates) == pytest.approx(1.0, abs=0.27)


def test_a_run_never_seen_has_the_offset_of_a_new_run():
    sizes = np.geomspace(4e8, 6e9, 8)
    for offset in (3.0, 10.0):
        found = surfaces(family(offset=offset, sizes=sizes, steps=FEWER))
        at = {"parameters": sizes[4], "tokens": np.array([1e11])}
        unseen = [off(found[law.series], law, **at)[1][0] for law in LAWS]
        seen = [off(found[law.series], law, run=run_of(sizes[4]), **at)[1][0] for law in LAWS]
        # One deviation of the offsets: forty of them tell it to 1 / √80 = 11 %, of which this is three.
        assert np.mean(unseen) == pytest.approx(offset, rel=0.33)
        assert np.mean(seen) < 0.6, "of a run that was seen only the noise of its mean is left"


def test_dense_checkpoints_are_averaged_without_changing_their_mean_or_noise():
    dense = np.unique(np.r_[np.geomspace(1_600, 20_000, 30).astype(int), np.arange(20_000, 150_001, 500)])
    table = family(steps=dense, sizes=SIZES[::2])
    for law in LAWS:
        curve = table.get(run_of(LARGEST), law.series)
        tokens_P, value_P, count_P = _thinned(curve, MOST_CHECKPOINTS)
        assert len(tokens_P) <= MOST_CHECKPOINTS and count_P.sum() == len(curve) == len(dense)
        assert value_P @ count_P == pytest.approx(judged_value(curve).sum(), rel=1e-12)
        assert np.log(tokens_P) @ count_P == pytest.approx(np.log(curve.tokens_C).sum(), rel=1e-12)
        # Means of `count` scores scatter about the law by noise / √count (the law's bend within a group is far less).
        scatter = (value_P - law.judged(LARGEST, tokens_P)) / (law.noise / np.sqrt(count_P))
        assert 0.6 < np.sqrt(np.mean(scatter**2)) < 1.5
    found = surfaces(table)
    for law in LAWS:
        # Of single checkpoints, not of their means: which would be four times less.
        of_runs = [noise_of(relevant(curve, None)) for curve in table.of_series(law.series)]
        assert found[law.series].noise == np.median(of_runs) == pytest.approx(law.noise, rel=0.2)
        error, _ = off(found[law.series], law, tokens=np.geomspace(1e10, TOTAL_TOKENS, 9), run=run_of(LARGEST))
        assert np.abs(error).max() < 1.0
    # A hundred checkpoints within half an e-fold of the last tell the curve there to noise / √100, in whichever way the
    # run became known; were each mean of theirs counted as one score, to three times that.
    others = surfaces(table, runs=[name for name in table.runs if name != run_of(LARGEST)])
    for law in LAWS:
        late = {"tokens": np.array([2.5e11]), "run": run_of(LARGEST)}
        added = others[law.series].with_run(table.get(run_of(LARGEST), law.series), parameters=LARGEST)
        for surface in (found[law.series], added):
            assert 0.05 < off(surface, law, **late)[1][0] < 0.2


def test_few_checkpoints_are_left_as_they_are():
    curve = family().get(run_of(LARGEST), SERIES[0])
    tokens_P, value_P, count_P = _thinned(curve, len(curve))
    np.testing.assert_array_equal(tokens_P, curve.tokens_C)
    np.testing.assert_array_equal(value_P, curve.value_C)
    assert (count_P == 1).all()


def test_checkpoints_at_no_tokens_and_before_half_a_percent_are_left_out():
    table = family(steps=(0, *STEPS), laws=ABILITIES)
    curve = table.get(run_of(LARGEST), SERIES[0])
    assert relevant(curve, TOTAL_TOKENS).step_C.tolist() == list(STEPS[1:]), "step 500 is 0.33 %"
    assert relevant(curve, None).step_C.tolist() == relevant(curve, TOTAL_TOKENS).step_C.tolist()
    assert relevant(curve.until(2e9), None).step_C.tolist() == [500, 1_000]

    def absurd(one):
        return with_values(one, np.where(one.step_C < 750, -9.0, one.value_C))

    tables = (table, changed(table, absurd), changed(table, lambda one: one.since_step(750)))
    bands = [surfaces(known, ABILITIES[:1])[SERIES[0]].predict(parameters=LARGEST, tokens_Q=END) for known in tables]
    for band in bands[1:]:
        np.testing.assert_array_equal(band.mean_Q, bands[0].mean_Q)
        np.testing.assert_array_equal(band.covariance_QQ, bands[0].covariance_QQ)


def test_tiny_models_are_predicted_as_large_ones_are():
    laws = [replace(law, unit=(8e5, 7e5)) for law in LAWS]
    errors, standardised = [], []
    for seed in range(2):
        table = family(laws, sizes=(1e5, 2e5, 4e5, 8e5), steps=range(100, 2_001, 100), tokens_per_step=1e3, seed=seed)
        found = surfaces(table.until(run_of(8e5), 6e5), laws)
        for law in laws:
            error, deviation = off(found[law.series], law, parameters=8e5, tokens=np.array([2e6]), run=run_of(8e5))
            errors.append(error[0])
            standardised.append(error[0] / deviation[0])
    assert np.sqrt(np.mean(np.square(errors))) < 2.0
    # The root mean square of ten of deviation 1 is between these in 99.8 % of all cases.
    assert 0.38 < np.sqrt(np.mean(np.square(standardised))) < 1.72


def test_perplexities_and_bits_per_byte_are_predicted_in_nats_and_bits():
    laws = (
        replace(LOSS, task="lambada_openai", metric="ppl"),
        replace(LOSS, task="bits", metric="gold_bpb", floor=0.3, size=(0.1, 0.3), tokens=(0.1, 0.3)),
    )
    table = family(laws)
    assert table.get(run_of(LARGEST), laws[0].series).value_C[-1] == pytest.approx(np.exp(2.35), rel=0.05)
    found = surfaces(table.until(run_of(LARGEST), 0.3 * TOTAL_TOKENS), laws)
    for law in laws:
        error, deviation = off(found[law.series], law, run=run_of(LARGEST))
        assert abs(error[0]) < 1.5 and 0.3 < deviation[0] < 3.0


def test_what_has_too_few_scores_or_no_size_is_left_out(whole):
    table, found = whole
    short = table.until(run_of(SIZES[0]), 2e10)
    short = short.select(runs=[run_of(SIZES[0])])
    assert len(relevant(short.curves[0], TOTAL_TOKENS)) == 2
    assert surfaces(short) == {}
    assert surfaces(table.select(series=SERIES[:2])).keys() == set(SERIES[:2])
    # A run of unknown size teaches nothing, and none of a known size less.
    unknown = [RunFacts(name="unknown", family="made", total_tokens=TOTAL_TOKENS)]
    more = [replace(curve, run="unknown") for curve in table if curve.run == run_of(LARGEST)]
    with_it = surfaces(CurveTable([*table.runs.values(), *unknown], [*table.curves, *more]), LAWS[:1])
    without = surfaces(table, LAWS[:1])
    for surface in (with_it, without):
        assert surface.keys() == {SERIES[0]}
    left, right = (one[SERIES[0]].predict(parameters=LARGEST, tokens_Q=END).mean_Q for one in (with_it, without))
    # The number of runs sets how many checkpoints a run may have at most; here none has so many.
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_a_run_that_lacks_a_series_is_predicted_as_one_never_seen():
    table = family()
    lacking = changed(table, lambda c: None if (c.run, c.series) == (run_of(LARGEST), SERIES[0]) else c)
    surface = surfaces(lacking)[SERIES[0]]
    named = surface.predict(parameters=LARGEST, tokens_Q=END, run=run_of(LARGEST))
    nameless = surface.predict(parameters=LARGEST, tokens_Q=END)
    np.testing.assert_allclose(named.mean_Q, nameless.mean_Q, rtol=1e-12)
    np.testing.assert_allclose(named.covariance_QQ, nameless.covariance_QQ, rtol=1e-9)
