from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.gp import Scores, fit
from probes.dynamics.loss_alone import fit_loss_alone, is_comparable, try_both
from probes.dynamics.published import pythia
from probes.dynamics.siblings import CHECKPOINTS, UnseenTask, aligned, kernel_terms, predict_unseen
from probes.dynamics.table import CurveTable, Series
from tests.support.curve_family import ABILITIES, LOSS, SIZES, STEPS, TOTAL_TOKENS, changed, family, run_of, with_values

RUNS = [run_of(size) for size in SIZES]
RUN, OTHERS = RUNS[3], [*RUNS[:3], RUNS[4]]
SIBLINGS = [law.series for law in ABILITIES]
TARGET = Series("target", "acc", 0)


def linear(curves, loss):
    return 0.1 + 0.5 * curves["alpha"] + 0.3 * curves["beta"]


def with_target(table, target=linear, *, task="target", metric="acc", chance=0.25):
    """The table with one more task: a function of the run's other scores and its loss."""
    new = []
    for run in table.runs:
        curves = {curve.task: curve for curve in table.of_run(run)}
        values = target({name: curve.value_C for name, curve in curves.items()}, curves[LOSS.task].value_C)
        new.append(replace(curves["alpha"], task=task, metric=metric, chance=chance, value_C=values))
    return CurveTable(table.runs.values(), [*table.curves, *new])


def predict(table, *, run=RUN, targets=(TARGET,), measured=SIBLINGS, loss=LOSS.series, learn_from=RUNS, **more):
    return predict_unseen(table, run, list(targets), measured=measured, loss=loss, learn_from=learn_from, **more)


@pytest.fixture(scope="module")
def table():
    return with_target(family())


@pytest.mark.parametrize("learn_from", [RUNS, RUNS[:3]], ids=["other sizes", "smaller sizes"])
def test_a_linear_function_of_siblings_is_recovered(table, learn_from):
    (found,) = predict(table, learn_from=learn_from)
    truth = table.get(RUN, TARGET)
    late = truth.tokens_C >= 0.05 * TOTAL_TOKENS
    np.testing.assert_array_equal(found.tokens_Q, truth.tokens_C[late])
    assert found.refused is None and found.siblings == tuple(SIBLINGS)
    # Checkpoint noise of the siblings is the target's own here: 0.5 · 0.004 and 0.3 · 0.006 together are 0.0027.
    assert np.abs(found.value_Q - truth.value_C[late]).max() < 0.2 * 0.0027
    assert ((found.low_Q <= truth.value_C[late]) & (truth.value_C[late] <= found.high_Q)).all()
    assert (found.high_Q - found.low_Q < 4 * 1.2816 * 0.0027).all()


def test_a_function_of_the_loss_alone_is_recovered_from_siblings_that_say_nothing():
    random = np.random.default_rng(0)
    noise = changed(
        family(), lambda c: c if c.task == "held_out" else with_values(c, 0.5 + 0.1 * random.random(len(c)))
    )
    table = with_target(noise, lambda _, loss: 1.6 - 0.4 * loss)
    (found,) = predict(table)
    truth = table.get(RUN, TARGET).value_C[-len(found.value_Q) :]
    assert np.ptp(truth) > 0.1 and np.abs(found.value_Q - truth).max() < 0.005


def test_bits_per_byte_and_perplexities_come_back_in_their_own_unit():
    bits, ppl = Series("bits", "gold_bpb", 0), Series("lambada_openai", "ppl", 0)
    table = with_target(family(), lambda c, _: 1.5 - c["alpha"], task="bits", metric="gold_bpb", chance=np.nan)
    table = with_target(table, lambda c, _: np.exp(5 - 4 * c["beta"]), task=ppl.task, metric="ppl", chance=np.nan)
    for found in predict(table, targets=[bits, ppl]):
        truth = table.get(RUN, found.series).value_C[-len(found.value_Q) :]
        np.testing.assert_allclose(found.value_Q, truth, rtol=0.01)
        assert (found.low_Q < found.value_Q).all() and (found.value_Q < found.high_Q).all()


def test_80_percent_intervals_hold_70_to_90_percent_of_scores_about_a_known_function():
    inside = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        table = with_target(
            family(seed=seed, noise=0.2),
            lambda c, _: linear(c, _) + 0.01 * random.normal(size=len(c["alpha"])),  # noqa: B023
        )
        for run in RUNS[2:4]:
            (found,) = predict(table, run=run)
            truth = table.get(run, TARGET).value_C[-len(found.value_Q) :]
            inside += list((found.low_Q <= truth) & (truth <= found.high_Q))
    # 240 scores; of their own intervals 80 % would hold 76 to 84 % in two of three cases.
    assert len(inside) == 240 and 0.7 <= np.mean(inside) <= 0.9


def assert_same(left: UnseenTask, right: UnseenTask) -> None:
    assert left.refused is None and left.siblings == right.siblings
    for name in ("tokens_Q", "value_Q", "low_Q", "high_Q"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_the_targets_own_scores_in_the_run_are_not_looked_at(table):
    (found,) = predict(table)

    def is_target(curve):
        return (curve.run, curve.series) == (RUN, TARGET)

    absurd = changed(table, lambda c: with_values(c, -c.value_C) if is_target(c) else c)
    absent = changed(table, lambda c: None if is_target(c) else c)
    for known in (absurd, absent):
        assert_same(predict(known)[0], found)
    unseen_siblings = changed(
        table, lambda c: c if c.run != RUN or c.series != SIBLINGS[0] else with_values(c, c.value_C / 2)
    )
    assert not np.array_equal(predict(unseen_siblings)[0].value_Q, found.value_Q), "siblings are looked at"


def test_a_target_is_never_its_own_sibling_and_neither_is_another_split_of_it(table):
    twins = [Series(task, "acc", 0) for task in ("exam_val_5shot", "exam_test_5shot", "exam_validation_5shot")]
    split = table
    for one in twins:
        split = with_target(split, task=one.task)
    both = [*SIBLINGS, *twins]
    for found in predict(split, targets=twins, measured=both):
        assert found.siblings == tuple(SIBLINGS)
    (alpha,) = predict(split, targets=SIBLINGS[:1], measured=both)
    assert alpha.siblings == (*SIBLINGS[1:], *twins)
    # What a twin had in the run is not looked at either.
    spoiled = changed(split, lambda c: with_values(c, -c.value_C) if c.run == RUN and c.task.startswith("exam") else c)
    assert_same(
        predict(spoiled, targets=twins[:1], measured=both)[0], predict(split, targets=twins[:1], measured=both)[0]
    )


def test_other_metrics_of_a_target_are_twins_too(table):
    norm = with_target(table, task="target", metric="acc_norm")
    (found,) = predict(norm, measured=[*SIBLINGS, Series("target", "acc_norm", 0)])
    assert found.siblings == tuple(SIBLINGS)


def test_the_run_itself_is_not_learnt_from(table):
    assert_same(predict(table, learn_from=RUNS)[0], predict(table, learn_from=OTHERS)[0])


def test_the_run_has_the_offset_of_none_of_the_others_and_their_order_is_nothing(table):
    def off(curve):
        return with_values(curve, curve.value_C + 0.1 * OTHERS.index(curve.run) / 3)

    shifted = changed(table, lambda c: off(c) if c.series == TARGET and c.run != RUN else c)
    first, turned = (predict(shifted, learn_from=names)[0].value_Q for names in (OTHERS, OTHERS[::-1]))
    # To the search's tolerance: a sum in another order ends it elsewhere.
    np.testing.assert_allclose(turned, first, atol=1e-3)


def refusal(table, **more):
    (found,) = predict(table, **more)
    for array in (found.tokens_Q, found.value_Q, found.low_Q, found.high_Q):
        assert array.shape == (0,)
    return found.refused


def test_one_sibling_is_refused(table):
    assert refusal(table, measured=SIBLINGS[:1]) == "1 sibling(s) measured; at least 2 are needed."
    assert refusal(table, measured=[TARGET, SIBLINGS[0]]) == "1 sibling(s) measured; at least 2 are needed."
    assert predict(table, measured=SIBLINGS[:2])[0].refused is None


def test_a_loss_that_nobody_else_measured_is_refused(table):
    lonely = changed(table, lambda c: None if c.run != RUN and c.series == TARGET else c)
    bits = replace(TARGET, metric="gold_bpb")
    alone = with_target(lonely, task="target", metric="gold_bpb", chance=np.nan)
    alone = changed(alone, lambda c: None if c.run != RUN and c.series == bits else c)
    assert refusal(alone, targets=[bits], even_at_chance=True) == "no other run has measured it."
    assert refusal(lonely, even_at_chance=True) == "no other run has measured it."


def test_what_others_guess_is_refused_unless_wanted(table):
    random = np.random.default_rng(1)

    def guess(curve):
        return with_values(curve, 0.25 + 0.004 * random.normal(size=len(curve))) if curve.series == TARGET else curve

    guessed = changed(table, guess)
    assert refusal(guessed) == "at chance in every run that measured it: nothing can be said of it."
    assert predict(guessed, even_at_chance=True)[0].refused is None


def test_too_few_shared_checkpoints_are_refused(table):
    reason = "too few checkpoints at which the target, its siblings and the loss were all measured."

    def off_grid(curve):
        return replace(curve, tokens_C=curve.tokens_C + 1.0) if curve.series == TARGET else curve

    assert refusal(changed(table, off_grid)) == reason
    short = changed(table, lambda c: c.since_step(140_000) if c.run != RUN else c)
    assert refusal(short, learn_from=RUNS[:2], even_at_chance=True) == reason
    assert refusal(changed(table, lambda c: None if c.run == RUN and c.task == LOSS.task else c)) == reason


def test_mmlu_of_pythia_is_refused():
    whole = pythia(deduped=False, num_fewshot=0)
    mmlu = [one for one in whole.series() if one.task.startswith("hendrycksTest") and one.metric == "acc"]
    measured = [Series(task, "acc", 0) for task in ("piqa", "arc_easy", "sciq")]
    found = predict_unseen(
        whole,
        "pythia-6.9b",
        mmlu,
        measured=measured,
        loss=Series("lambada_openai", "ppl", 0),
        learn_from=list(whole.runs),
    )
    assert len(found) == 57 and all(one.refused is not None for one in found)


def test_several_targets_come_back_in_the_order_asked_with_their_refusals(table):
    targets = [SIBLINGS[2], Series("nobody", "acc", 0), TARGET, SIBLINGS[0]]
    found = predict(table, targets=targets)
    assert [one.series for one in found] == targets
    assert [one.refused is not None for one in found] == [False, True, False, False]


def test_rows_are_the_checkpoints_all_series_share(table):
    sparse = changed(table, lambda c: c.where(c.step_C % 4_000 == 3_000) if c.series == SIBLINGS[0] else c)
    rows = aligned(sparse, RUNS[:2], [*SIBLINGS[:2], LOSS.series], checkpoints=None)
    steps = [step for step in STEPS if step % 4_000 == 3_000 and step >= 0.05 * 150_000]
    np.testing.assert_array_equal(rows.tokens_R, 2 * [step * 2e6 for step in steps])
    np.testing.assert_array_equal(rows.run_R, np.repeat([0, 1], len(steps)))
    for run, row in zip((0, 1), (0, len(steps)), strict=True):
        for column, one in enumerate([*SIBLINGS[:2], LOSS.series]):
            curve = sparse.get(RUNS[run], one)
            value = curve.value_C[curve.tokens_C == rows.tokens_R[row]][0]
            assert rows.value_RS[row, column] == (-value if one == LOSS.series else value)


def test_runs_that_lack_a_series_give_no_rows_and_no_runs_none(table):
    lacking = changed(table, lambda c: None if (c.run, c.series) == (RUNS[0], SIBLINGS[0]) else c)
    assert set(aligned(lacking, RUNS[:2], SIBLINGS).run_R) == {1}
    assert aligned(lacking, RUNS[:1], SIBLINGS).value_RS.shape == (0, len(SIBLINGS))
    assert aligned(lacking, [], SIBLINGS).value_RS.shape == (0, len(SIBLINGS))


def test_at_most_so_many_checkpoints_a_run_evenly_over_log_tokens():
    steps = tuple(range(1_000, 101_000, 1_000))
    table = family(steps=steps)
    rows = aligned(table, RUNS[:1], SIBLINGS)
    assert len(rows.tokens_R) == CHECKPOINTS
    assert rows.tokens_R[-1] == 2e11 and rows.tokens_R[0] == pytest.approx(1e10)
    gaps = np.diff(np.log(rows.tokens_R))
    # Half a checkpoint (1,000 steps) of 5,000 steps, where they are widest.
    assert np.abs(gaps - np.log(20) / 9).max() < 0.5 * 1_000 / 5_000 * 2


def test_a_moving_average_is_that_of_numpy_and_keeps_the_ends():
    table = family()
    rows = aligned(table, RUNS[:1], SIBLINGS[:1], average_over=3, since_share=0.005, checkpoints=None)
    value_C = table.get(RUNS[0], SIBLINGS[0]).since_step(1_000).value_C
    middle = [np.mean(value_C[i - 1 : i + 2]) for i in range(1, len(value_C) - 1)]
    np.testing.assert_allclose(rows.value_RS[1:-1, 0], middle, rtol=1e-12)
    assert rows.value_RS[0, 0] == pytest.approx((2 * value_C[0] + value_C[1]) / 3)


def test_the_kernel_reads_siblings_mean_loss_and_run_in_that_order():
    by_name = {term.name: term for term in kernel_terms(3)}
    assert by_name["each sibling"].columns == ((0, 1, 2),)
    assert by_name["their mean"].columns == ((3,),)
    assert by_name["loss"].columns == ((4,),) and by_name["loss bend"].columns == ((4, 4),)
    assert by_name["smooth"].columns == ((3,), (4,)) and by_name["run"].within == (5,)


def parts_of_a_benchmark(*, noise):
    """Twelve parts that the loss alone decides, and swings of each part in each run that no other part has."""
    random, table = np.random.default_rng(1), family()
    for part in range(12):
        slope = 0.2 + 0.05 * part

        def score(curves, loss, slope=slope):
            # A run's own course in each part: parts that agree in some runs by accident do not in another.
            drift = random.normal(0, noise) + np.linspace(0, random.normal(0, noise), len(loss))
            return 1.4 - slope * loss + drift + random.normal(0, 0.003, len(loss))

        table = with_target(table, score, task=f"blimp_{part}")
    return table, [Series(f"blimp_{part}", "acc", 0) for part in range(12)]


def errors_of(table, found):
    truths = [table.get(one.run, one.series).value_C[-len(one.value_Q) :] for one in found]
    with_siblings = [np.abs(one.value_Q - truth).mean() for one, truth in zip(found, truths, strict=True)]
    alone = [np.abs(one.alone_Q - truth).mean() for one, truth in zip(found, truths, strict=True)]
    return float(np.mean(with_siblings)), float(np.mean(alone))


def test_parts_of_a_benchmark_that_do_not_tell_of_each_other_are_predicted_from_the_loss():
    table, parts = parts_of_a_benchmark(noise=0.02)
    found = predict(table, targets=parts, measured=parts, even_at_chance=True)
    assert len({one.siblings_weight for one in found}) == 1, "parts are weighed together"
    assert found[0].siblings_weight < 0.5
    error, alone = errors_of(table, found)
    assert error < 1.05 * alone
    assert "the loss alone" in found[0].method or found[0].method.startswith("the loss held_out alone")
    assert "held-out run(s)" in found[0].method


def test_siblings_that_help_keep_their_weight_and_few_references_do_not_flip_it(table):
    (found,) = predict(table)
    assert found.siblings_weight > 0.95 and found.method.startswith(
        "the siblings alpha, beta, gamma, delta and the loss"
    )
    noisy, parts = parts_of_a_benchmark(noise=0.02)
    (one,) = predict(noisy, run=RUNS[1], targets=parts[:1], measured=parts, learn_from=RUNS[:1], even_at_chance=True)
    assert one.siblings_weight == 1.0 and one.method.endswith("there are too few other runs to try the loss alone")


@pytest.mark.parametrize(
    "size,learnt",
    [(8.0, {1.0: (), 2.0: (1.0,), 4.0: (1.0, 2.0)}), (3.0, {1.0: (2.0, 4.0), 2.0: (1.0, 4.0), 4.0: (1.0, 2.0)})],
    ids=["larger than all", "in between"],
)
def test_a_run_is_held_out_as_the_run_that_is_asked_about_is(size, learnt):
    sizes = np.array([1.0, 2.0, 4.0])
    for held, kept in learnt.items():
        comparable = is_comparable(sizes, held, size) & (sizes != held)
        assert tuple(sizes[comparable]) == kept
    assert is_comparable(sizes, 2.0, 4.0).all() and is_comparable(sizes, 2.0, None).all()


def test_what_is_held_out_is_not_learnt_from():
    table, parts = parts_of_a_benchmark(noise=0.02)
    rows = aligned(table, OTHERS, [*parts[:3], LOSS.series, parts[3]])
    centred = (rows.value_RS - rows.value_RS.mean(axis=0)) / rows.value_RS.std(axis=0)
    features = np.column_stack([centred[:, :3] / np.sqrt(3), centred[:, :3].mean(axis=1), centred[:, 3], rows.run_R])
    known = Scores(features, rows.value_RS[:, -1], np.full(len(features), 0.003))
    process, alone = fit(kernel_terms(3), [known]), fit_loss_alone([known])
    trial = try_both(process, alone, known, size_P=np.full(len(features), np.nan), size=None)
    assert trial.runs == len(OTHERS)
    first = rows.run_R == 0
    others = Scores(features[~first], known.value_P[~first], known.noise_P[~first])
    own = Scores(features[first], np.zeros(first.sum()), known.noise_P[first])
    expected = known.value_P[first] - process.posterior(others, own)[0]
    np.testing.assert_allclose(trial.siblings_H[trial.run_H == 0] * trial.spread, expected, atol=1e-9)


def test_fits_that_are_kept_change_nothing_and_are_used_again(table):
    kept = {}
    first = predict(table, learn_from=RUNS[:3], fits=kept)
    assert len(kept) == 2
    for fits in (kept, None):
        assert_same(predict(table, learn_from=RUNS[:3], fits=fits)[0], first[0])
    assert len(kept) == 2
