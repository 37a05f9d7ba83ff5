import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.align import common_points, find_series, interpolation, loss_series, positions
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series, make_curve


def made(tokens, values, *, run="run", series=None, domain="knowledge"):
    return make_curve(
        np.arange(len(tokens), dtype=float),
        np.asarray(tokens, float),
        np.asarray(values, float),
        np.full(len(tokens), np.nan),
        run=run,
        series=series or Series("task", "acc"),
        domain=domain,
    )


LOSS = Series("validation", "loss")


def test_each_axis_is_the_logarithm_of_what_it_says():
    facts = RunFacts(name="run", parameters=2e9)
    curve = made([1e9, 1e10], [0.3, 0.4])
    table = CurveTable([facts], [curve])
    np.testing.assert_allclose(np.exp(positions(table, curve, axis="tokens")), [1e9, 1e10])
    np.testing.assert_allclose(np.exp(positions(table, curve, axis="tokens_per_parameter")), [0.5, 5.0])
    np.testing.assert_allclose(np.exp(positions(table, curve, axis="flops")), [6 * 2e9 * 1e9, 6 * 2e9 * 1e10])


def test_the_flops_of_a_large_run_do_not_overflow():
    table = olmo_ladder()
    curve = table.get("peteish13_eval_full", Series("hellaswag_val_rc_5shot", "bpb"))
    assert positions(table, curve, axis="flops")[-1] > np.log(1e23)


def test_unknown_parameters_leave_nothing_to_align_by():
    curve = made([1e9, 1e10], [0.3, 0.4])
    assert np.isnan(positions(CurveTable([], [curve]), curve, axis="tokens_per_parameter")).all()


def test_progress_by_loss_is_monotone_and_unknown_outside_what_was_measured():
    loss = made([1e9, 2e9, 4e9, 8e9], [4.0, 3.0, 3.5, 2.5], series=LOSS, domain=LOSS_DOMAIN)
    task = made([5e8, 2e9, 4e9, 8e9, 9e9], [0.3, 0.4, 0.5, 0.6, 0.7])
    found = positions(CurveTable([], [loss, task]), task, axis="loss")
    np.testing.assert_allclose(found, [np.nan, -3.0, -3.0, -2.5, np.nan])


def test_a_perplexity_is_a_loss_in_nats():
    perplexity = made([1e9, 1e10], [np.e**4, np.e**3], series=Series("lambada_openai", "ppl"))
    task = made([1e9, 1e10], [0.3, 0.4])
    table = CurveTable([], [perplexity, task])
    found = positions(table, task, axis="loss", loss=find_series(table, "lambada_openai:ppl"))
    np.testing.assert_allclose(found, [-4.0, -3.0])


def test_an_unknown_axis_and_a_missing_loss_name_what_there_is():
    curve = made([1e9, 1e10], [0.3, 0.4])
    table = CurveTable([], [curve, made([1e9], [20.0], series=Series("lambada_openai", "ppl"))])
    with pytest.raises(ProbeError, match="tokens_per_parameter"):
        positions(table, curve, axis="steps")
    with pytest.raises(ProbeError, match="lambada_openai:ppl"):
        positions(table, curve, axis="loss")


def test_the_loss_is_found_that_most_runs_have_and_validation_before_training():
    curves = [
        made([1e9], [3.0], run=run, series=series, domain=LOSS_DOMAIN)
        for run, series in (("a", Series("train", "loss")), ("a", LOSS), ("b", LOSS), ("b", Series("train", "loss")))
    ]
    assert loss_series(CurveTable([], curves)) == LOSS
    assert loss_series(olmo_ladder()) == Series("c4_en-validation", "ce_loss")


def test_a_series_is_named_by_task_and_metric():
    table = pythia(deduped=False, num_fewshot=0)
    assert find_series(table, "lambada_openai:ppl") == Series("lambada_openai", "ppl", 0)
    with pytest.raises(ProbeError, match="several series. Known: piqa:acc, piqa:acc_norm"):
        find_series(table, "piqa")
    with pytest.raises(ProbeError, match="no series"):
        find_series(table, "hellaswag:acc")


def test_common_points_are_the_sparser_runs_checkpoints_where_both_are_known():
    points, (first, second) = common_points([np.arange(10.0), np.array([-1.0, 2.5, 5.0, 20.0])])
    np.testing.assert_array_equal(points, [2.5, 5.0])
    np.testing.assert_allclose(first @ np.arange(10.0) ** 2, [(4 + 9) / 2, 25.0])
    np.testing.assert_allclose(second @ np.array([7.0, 1.0, 3.0, 9.0]), [1.0, 3.0])


def test_unknown_and_repeated_positions_are_left_out():
    points, (first, second) = common_points([np.array([np.nan, 1.0, 1.0, 2.0, np.nan]), np.array([1.0, 1.5, 2.0, 2.5])])
    np.testing.assert_array_equal(points, [1.0, 2.0])
    np.testing.assert_allclose(first @ np.array([9.0, 1.0, 9.0, 2.0, 9.0]), [1.0, 2.0])


def test_runs_that_do_not_overlap_have_no_common_points():
    points, (first, second) = common_points([np.arange(3.0), np.arange(5.0, 9.0)])
    assert len(points) == 0 and first.shape == (0, 3) and second.shape == (0, 4)
    assert len(common_points([np.full(3, np.nan), np.arange(3.0)])[0]) == 0


def test_interpolation_is_numpys():
    rng = np.random.default_rng(0)
    known = np.sort(rng.normal(size=12))
    points, values = rng.uniform(known[0], known[-1], 30), rng.normal(size=12)
    np.testing.assert_allclose(interpolation(known, points) @ values, np.interp(points, known, values), atol=1e-12)
    np.testing.assert_allclose(interpolation(known[:1], points), 1.0)
