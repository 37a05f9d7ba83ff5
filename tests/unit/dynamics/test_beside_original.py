"""A run beside a published original: interpolation, bands that hold what they say, refusals of other protocols."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pretrain.errors import ProbeError
from probes.dynamics.beside_original import ABOVE, BELOW, WITHIN, original_at, put_beside, sentence, summary
from probes.dynamics.originals import ORIGINALS, find_original, hints, original_of
from probes.dynamics.published import pythia
from probes.dynamics.published_recipes import FULL_ITEMS, PublishedCurve, amber, openllama
from probes.dynamics.table import CurveTable, RunFacts, Series, TaskCurve, curve_of

SIZE = 6_738_415_616.0


def a_curve(
    rows: Iterable[tuple[float, float]], *, series: Series, items: int = 10_000, run: str = "mine"
) -> TaskCurve:
    return curve_of(
        [(-1, tokens, value, (value * (1 - value) / (items - 1)) ** 0.5) for tokens, value in rows],
        run=run,
        series=series,
        domain="any",
    )


def a_run(curves: Iterable[TaskCurve], *, parameters: float | None = SIZE) -> CurveTable:
    return CurveTable([RunFacts(name="mine", parameters=parameters)], curves)


def copy_of(table: CurveTable, run: str, *, offset: float = 0.0, every: int = 1) -> CurveTable:
    """The original itself as a run, moved by so much."""
    return a_run(
        replace(curve, run="mine", value_C=curve.value_C + offset).where(np.arange(len(curve)) % every == 0)
        for curve in table.of_run(run)
    )


# Interpolation


def test_the_original_is_interpolated_in_the_logarithm_of_tokens_and_not_beyond_its_ends() -> None:
    curve = a_curve([(1e9, 0.2), (1e11, 0.6)], series=Series("piqa", "acc", 0))
    published = PublishedCurve(curve, np.array([0.005, 0.015]))
    tokens_Q = np.array([0.0, 0.98e9, 1e9, 1e10, 10**10.5, 1e11, 1.009e11, 1.02e11])
    value_Q, stderr_Q, error_Q = original_at(published, tokens_Q)
    np.testing.assert_allclose(value_Q, [np.nan, np.nan, 0.2, 0.4, 0.5, 0.6, 0.6, np.nan], rtol=1e-12)
    np.testing.assert_allclose(error_Q, [np.nan, np.nan, 0.005, 0.01, 0.0125, 0.015, 0.015, np.nan], rtol=1e-12)
    assert stderr_Q[3] == pytest.approx(curve.stderr_C.mean())


def test_a_published_checkpoint_is_held_against_its_own_number() -> None:
    table = openllama()
    found = put_beside(copy_of(table, "open_llama_7b"), "mine", find_original("openllama_7b_v1"))
    assert len(found.tasks) == 21 and not found.refused
    for task in found.tasks:
        published = table.get("open_llama_7b", task.series)
        assert published is not None
        np.testing.assert_allclose(task.original_K, published.value_C, rtol=1e-12)


# Bands and verdicts


def test_a_band_is_two_errors_over_items_and_rounding() -> None:
    series = Series("hellaswag", "acc_norm", 0)
    table = a_run([a_curve([(700e9, 0.69)], series=series, items=FULL_ITEMS["hellaswag"])])
    (task,) = put_beside(table, "mine", find_original("openllama_7b_v1")).tasks
    variance = (0.69 * 0.31 + 0.70 * 0.30) / 10_041 + 0.005**2 / 3
    assert task.half_K[0] == pytest.approx(1.959964 * variance**0.5, rel=1e-6)
    assert task.difference_K[0] == pytest.approx(-0.01)
    assert task.in_bands == pytest.approx(-0.01 / task.half_K[0])


def test_the_original_itself_is_within_and_five_points_less_is_below() -> None:
    table = amber()
    same = put_beside(copy_of(table, "Amber", every=10), "mine", find_original("amber"))
    assert {verdict for task in same.tasks for verdict in task.verdicts} == {WITHIN}
    assert same.verdict == WITHIN and "none differs beyond noise" in summary(same)
    assert "At the latest checkpoint 0 of 4 outside the band, 0.2 to be expected by noise." in summary(same)
    for offset, expected in ((-0.05, BELOW), (0.05, ABOVE)):
        moved = put_beside(copy_of(table, "Amber", offset=offset, every=10), "mine", find_original("amber"))
        assert {task.verdict for task in moved.tasks} == {expected} and moved.verdict == expected
        assert all(task.mean_difference == pytest.approx(offset) for task in moved.tasks)
        well_known = next(task for task in moved.tasks if task.series.task == "hellaswag")
        assert set(well_known.verdicts) == {expected}
        assert f"{expected} the original" in sentence(well_known) and f"{expected} in hellaswag" in summary(moved)


def drawn(random: np.random.Generator, *, run_of_checkpoints: int = 3) -> tuple[CurveTable, CurveTable]:
    """A run and an original of one truth: items drawn for each, the original's scores rounded as a README's."""
    places = np.geomspace(400e9, 1e12, run_of_checkpoints)
    own, theirs = [], []
    for task, metric in (("piqa", "acc"), ("arc_easy", "acc"), ("winogrande", "acc"), ("boolq", "acc"), ("rte", "acc")):
        truth, items = random.uniform(0.4, 0.8), FULL_ITEMS[task]
        series = Series(task, metric, 0)
        first, second = (random.binomial(items, truth, len(places)) / items for _ in range(2))
        own.append(a_curve(zip(places, first, strict=True), series=series, items=items))
        theirs.append(a_curve(zip(places, second.round(2), strict=True), series=series, items=items, run="original"))
    return a_run(own), CurveTable([RunFacts(name="original", parameters=SIZE)], theirs)


def test_equal_models_are_outside_the_band_as_often_as_stated() -> None:
    random = np.random.default_rng(0)
    outside, called, runs = [], 0, 150
    any_original = find_original("openllama_7b_v1")
    for _ in range(runs):
        table, theirs = drawn(random)
        original = replace(
            any_original,
            curves={curve.series: PublishedCurve(curve, np.full(len(curve), 0.005)) for curve in theirs},
        )
        found = put_beside(table, "mine", original)
        outside += [task.outside for task in found.tasks]
        called += any(task.verdict != WITHIN for task in found.tasks) or found.verdict != WITHIN
    share = sum(outside) / (3 * len(outside))
    # 2,250 checkpoints: the standard error of a share of 5 % is 0.5 %.
    assert share == pytest.approx(0.05, abs=0.015)
    # Checkpoints are drawn apart here, where a mean is surer than it is taken to be; at most 5 % with runs' luck.
    assert called <= stats.binom.ppf(0.999, runs, 0.05)


def test_scores_of_one_truth_at_one_checkpoint_are_called_in_one_run_of_twenty() -> None:
    random = np.random.default_rng(1)
    called, runs = 0, 200
    any_original = find_original("openllama_7b_v1")
    for _ in range(runs):
        table, theirs = drawn(random, run_of_checkpoints=1)
        original = replace(
            any_original,
            curves={curve.series: PublishedCurve(curve, np.full(len(curve), 0.005)) for curve in theirs},
        )
        found = put_beside(table, "mine", original)
        called += any(task.verdict != WITHIN for task in found.tasks) or found.verdict != WITHIN
    low, high = stats.binom.ppf([0.001, 0.999], runs, 0.05)
    assert called <= high and called > low / 2


def test_like_runs_differ_by_less_than_the_band_since_their_items_are_the_same() -> None:
    first, second = pythia(deduped=False, num_fewshot=5), pythia(deduped=True, num_fewshot=5)
    deviations = []
    for run in first.runs:
        for task in ("arc_challenge", "piqa", "winogrande", "logiqa"):
            for metric in ("acc", "acc_norm"):
                one = first.get(run, Series(task, metric, 5))
                other = second.get(run.replace("-bf16", "") + "-deduped", Series(task, metric, 5))
                if one is not None and other is not None:
                    error_C = np.hypot(one.stderr_C, other.stderr_C)
                    deviations += ((one.value_C - other.value_C) / error_C).tolist()
    assert len(deviations) > 500
    assert np.sqrt(np.mean(np.square(deviations))) == pytest.approx(0.6, abs=0.05), "as the module says"


def test_verdicts_are_corrected_for_their_number() -> None:
    places = [(500e9, 0.5)]
    tasks = [Series(task, "acc", 0) for task in ("piqa", "arc_easy", "winogrande", "boolq")]
    own = [a_curve(places, series=series, items=1000) for series in tasks]
    own[0] = a_curve([(500e9, 0.55)], series=tasks[0], items=1000)
    curves = {
        series: PublishedCurve(a_curve(places, series=series, items=1000, run="original"), np.zeros(1))
        for series in tasks
    }
    found = put_beside(a_run(own), "mine", replace(find_original("amber"), curves=curves))
    z = 0.05 / np.sqrt((0.25 + 0.55 * 0.45) / 999)
    p = 2 * stats.norm.sf(z)
    assert p < 0.05 < 5 * p
    assert found.tasks[0].verdicts == [ABOVE]
    assert found.tasks[0].adjusted == pytest.approx(5 * p) and found.tasks[0].verdict == WITHIN
    assert found.in_bands == pytest.approx(found.tasks[0].in_bands / 4)


# Protocols


def test_other_shots_and_metrics_are_refused_with_what_the_run_has() -> None:
    place = [(500e9, 0.6)]
    table = a_run(
        [
            a_curve(place, series=Series("hellaswag", "acc_norm", 0)),
            a_curve(place, series=Series("hellaswag", "acc", 10)),
            a_curve(place, series=Series("arc_challenge", "acc_norm", -1)),
            a_curve(place, series=Series("fineline_mmlu", "acc", 5)),
        ]
    )
    found = put_beside(table, "mine", find_original("amber"))
    assert not found.tasks
    reasons = {series.task: reason for series, reason in found.refused.items()}
    assert reasons == {
        "hellaswag": "the run has acc, 10-shot; acc_norm, 0-shot: score it with acc_norm, 10-shot",
        "arc_challenge": "how many examples the run's prompts had is not known: say it in the column num_fewshot",
        "mmlu": "the run has the bundled excerpt fineline_mmlu, which has other items: score it on all",
        "truthfulqa_mc2": "the run was not scored on it",
    }


def test_names_of_older_lm_eval_versions_are_understood_and_remarked_on() -> None:
    table = a_run([a_curve([(500e9, 0.35)], series=Series("truthfulqa_mc", "mc2", 0), items=817)])
    (task,) = put_beside(table, "mine", find_original("amber")).tasks
    assert task.series == Series("truthfulqa_mc2", "acc", 0)
    assert task.remarks == ("recorded as truthfulqa_mc (mc2), its name before lm-eval 0.4",)


@pytest.mark.parametrize("prefix", ["hendrycksTest-", "mmlu_"])
def test_mmlu_is_the_mean_of_all_its_subjects_or_nothing(prefix: str) -> None:
    parts = [a_curve([(500e9, 0.2 + 0.002 * k)], series=Series(f"{prefix}{k}", "acc", 5), items=200) for k in range(57)]
    field = a_curve([(500e9, 0.9)], series=Series("mmlu_stem", "acc", 5))
    (task,) = put_beside(a_run([*parts, field]), "mine", find_original("amber")).tasks
    assert task.value_K[0] == pytest.approx(0.2 + 0.002 * 28)
    assert task.stderr_K[0] == pytest.approx(np.sqrt(sum(part.stderr_C[0] ** 2 for part in parts)) / 57)
    assert "57 subjects" in task.remarks[0]
    refused = put_beside(a_run([*parts[1:], field]), "mine", find_original("amber")).refused
    assert "not all 57 subjects with acc, 5-shot" in refused[Series("mmlu", "acc", 5)]


def test_a_limit_on_items_is_told_by_the_standard_error_and_the_whole_plan_is_preferred() -> None:
    series = Series("hellaswag", "acc_norm", 10)
    few = a_curve([(300e9, 0.70), (500e9, 0.71)], series=series, items=400)
    (task,) = put_beside(a_run([few]), "mine", find_original("amber")).tasks
    assert task.remarks == ("by its standard error the run was scored on about 400 items, the original on 10,042",)
    whole = replace(a_curve([(500e9, 0.71)], series=series, items=10_042), plan="all")
    (task,) = put_beside(a_run([few, whole]), "mine", find_original("amber")).tasks
    assert not task.remarks and len(task.tokens_K) == 1


def test_an_unknown_standard_error_is_taken_to_be_the_original_s() -> None:
    series = Series("hellaswag", "acc_norm", 10)
    curve = curve_of([(1, 500e9, 0.70, np.nan)], run="mine", series=series, domain="any")
    (task,) = put_beside(a_run([curve]), "mine", find_original("amber")).tasks
    assert "standard error is unknown" in task.remarks[0] and 0.01 < task.half_K[0] < 0.02


def test_nothing_is_extrapolated_and_another_size_is_remarked_on() -> None:
    series = Series("hellaswag", "acc_norm", 0)
    early = a_run([a_curve([(100e9, 0.5)], series=series, items=10_042)], parameters=1e6)
    found = put_beside(early, "mine", find_original("openllama_7b_v1"))
    assert found.refused[series] == (
        "published at 400B to 1.05T tokens, the run has checkpoints at 100B: nothing is extrapolated"
    )
    assert "1.00M parameters, OpenLLaMA 7B v1 6.74B: this is no repetition" in found.remarks[0]


def test_published_weights_scored_again_under_their_own_name_have_no_rounding() -> None:
    series = Series("hellaswag", "acc_norm", 0)
    end = 250_000 * 4_194_304.0
    again = a_curve([(end, 0.7198)], series=series, items=10_042, run="open_llama_7b")
    table = CurveTable([RunFacts(name="open_llama_7b", parameters=SIZE)], [again])
    (task,) = put_beside(table, "open_llama_7b", find_original("openllama_7b_v1")).tasks
    exact = put_beside(a_run([replace(again, run="mine")]), "mine", find_original("openllama_7b_v1")).tasks[0]
    assert task.half_K.tolist() == exact.half_K.tolist()
    published = openllama()
    (rounded,) = (
        one
        for one in put_beside(published, "open_llama_7b", find_original("openllama_7b_v1")).tasks
        if one.series == series
    )
    assert rounded.half_K[-1] > 1.05 * task.half_K[0]


# Which original


@pytest.mark.parametrize("key", ORIGINALS)
def test_every_original_can_be_read(key: str) -> None:
    original = find_original(key)
    assert original.key == key and original.curves
    assert all((one.error_C > 0).all() and np.isfinite(one.curve.stderr_C).all() for one in original.curves.values())


def test_an_unknown_original_is_answered_with_the_nearest() -> None:
    with pytest.raises(ProbeError, match=r"Did you mean openllama_7b_v[12]"):
        find_original("openllama_7b")
    with pytest.raises(ProbeError, match="holds 5 runs: .*Name one of them with --original-run"):
        find_original("published:openllama")
    assert find_original("published:openllama", run="open_llama_3b").title == "OpenLLaMA 3B v1"


@pytest.mark.parametrize(
    ("name", "parameters", "total_tokens", "key"),
    [
        ("amber_7b", SIZE, None, "amber"),
        ("mine", SIZE, 274_320 * 4_587_520.0, "amber"),
        ("amber_nano", 1e6, None, None),
        ("mine", SIZE, 1e12, None),
        ("openllama_7b_v1", SIZE, None, "openllama_7b_v1"),
        ("openllama_7b_v2-again", SIZE, None, "openllama_7b_v2"),
        ("openllama_3b_v1", 3_426_473_600.0, None, "openllama_3b_v1"),
        ("open_llama_7b", SIZE, None, None),
    ],
)
def test_a_run_that_repeats_a_recipe_is_known(
    name: str, parameters: float, total_tokens: float | None, key: str | None
) -> None:
    table = CurveTable([RunFacts(name=name, parameters=parameters, total_tokens=total_tokens)], [])
    assert original_of(table, name) == key
    assert len(hints(table, [name])) == (key is not None)
