import numpy as np
import pytest
from scipy import stats

from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.similarity import compare_sizes, measures
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve

TASKS = (
    ("lambada_openai", "acc"),
    ("piqa", "acc"),
    ("winogrande", "acc"),
    ("arc_easy", "acc"),
    ("arc_challenge", "acc_norm"),
    ("sciq", "acc"),
    ("logiqa", "acc_norm"),
    ("wsc", "acc"),
)


@pytest.fixture(scope="module")
def both():
    parts = [pythia(deduped=deduped, num_fewshot=0) for deduped in (False, True)]
    facts = [fact for part in parts for fact in part.runs.values() if fact.parameters > 2e8]
    names = {fact.name for fact in facts}
    return CurveTable(
        facts, [curve for part in parts for curve in part if curve.run in names and (curve.task, curve.metric) in TASKS]
    )


@pytest.fixture(scope="module")
def compared(both):
    return compare_sizes(both)


def made(run, task, values):
    return make_curve(
        np.arange(1, len(values) + 1) * 1000.0,
        np.arange(1, len(values) + 1) * 1e9,
        np.asarray(values, float),
        np.full(len(values), 0.01),
        run=run,
        series=Series(task, "acc"),
        domain="knowledge",
    )


def test_measures_are_scipys_correlations_and_one_minus_the_distance():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 20)).round(1)
    got = measures(first, second)
    for row in range(5):
        assert got["pearson"][row] == pytest.approx(stats.pearsonr(first[row], second[row]).statistic)
        assert got["spearman"][row] == pytest.approx(stats.spearmanr(first[row], second[row]).statistic)
        span = max(first[row].max(), second[row].max()) - min(first[row].min(), second[row].min())
        assert got["closeness"][row] == pytest.approx(1 - np.abs(first[row] - second[row]).mean() / span)
    parts = [got[name] for name in ("pearson", "spearman", "closeness")]
    np.testing.assert_allclose(got["similarity"], np.mean(parts, axis=0))


def test_equal_curves_are_as_alike_as_can_be_and_constant_ones_share_nothing():
    curve = np.linspace(0, 1, 10)
    assert measures(curve, curve)["similarity"] == pytest.approx(1.0)
    level = measures(np.ones(10), np.ones(10))
    assert level["pearson"] == level["spearman"] == 0.0


def test_the_ranking_of_tasks_is_stable_under_noise_and_another_choice_of_sizes(compared):
    assert compared.stability["similarity"] >= 0.8
    assert compared.stability["pearson"] >= 0.8 and compared.stability["spearman"] >= 0.8


def test_tasks_with_signal_are_alike_across_sizes_and_guessing_ones_are_not(compared):
    words = {one.series.task: one.words for one in compared.tasks}
    assert {task for task, word in words.items() if word == "alike"} == {"lambada_openai", "sciq", "arc_easy", "piqa"}
    assert words["wsc"] == "noise"
    assert compared.tasks[-1].series.task == "wsc"


def test_the_ceiling_is_above_the_similarity_of_sizes(compared):
    for one in compared.tasks:
        assert one.num_pairs == 30 and one.num_ceiling_pairs == 6
        assert one.ceiling > one.similarity
    assert compared.agreement["similarity"] > 0.8


def test_spearman_between_sizes_is_the_mean_over_all_pairs(both, compared):
    sciq = next(one for one in compared.tasks if one.series.task == "sciq")
    expected = []
    for family in ("pythia", "pythia-deduped"):
        runs = [name for name, facts in both.runs.items() if facts.family == family]
        values = [both.get(run, sciq.series).since_step(512).value_C for run in runs]
        expected += [
            stats.spearmanr(values[first], values[second]).statistic
            for first in range(6)
            for second in range(first + 1, 6)
        ]
    assert sciq.spearman == pytest.approx(np.mean(expected))


def test_intervals_hold_the_observed_value_of_clear_tasks(compared):
    for one in compared.tasks:
        assert one.low < one.high
    clear = [one for one in compared.tasks if one.series.task in ("lambada_openai", "arc_easy", "piqa", "winogrande")]
    assert all(one.low - 0.02 <= one.similarity <= one.high + 0.02 for one in clear)


def test_the_same_seed_gives_the_same_intervals(both):
    one = both.select(series=[Series("piqa", "acc", 0)])
    first, second = (compare_sizes(one, draws=20, seed=3).tasks[0] for _ in range(2))
    assert (first.low, first.high) == (second.low, second.high)


def test_without_runs_of_one_size_there_is_no_ceiling(both):
    standard = both.select(runs=[name for name in both.runs if not name.endswith("deduped")])
    compared = compare_sizes(standard, draws=20)
    assert np.isnan(compared.tasks[0].ceiling) and np.isnan(compared.ceiling_stability["similarity"])


def test_runs_of_other_families_are_not_compared_between_sizes():
    facts = [RunFacts(name="a", family="x", parameters=1e9), RunFacts(name="b", family="y", parameters=2e9)]
    table = CurveTable(
        facts, [made("a", "task", np.linspace(0.2, 0.5, 8)), made("b", "task", np.linspace(0.2, 0.6, 8))]
    )
    assert compare_sizes(table, draws=5).tasks == ()


def test_aligned_by_loss_the_ladders_sizes_are_three_times_nearer_than_by_tokens():
    table = olmo_ladder()
    series = [Series(f"{task}_rc_5shot", "bpb") for task in ("hellaswag_val", "arc_easy_test", "piqa_val")]
    runs = [f"{size}-{length}xC" for size in ("190M", "370M", "760M", "1B") for length in (1, 2, 5, 10)]
    chosen = table.select(runs=runs)
    by_tokens, by_loss = (
        {one.series: one.distance for one in compare_sizes(chosen, series=series, axis=axis, draws=2).tasks}
        for axis in ("tokens", "loss")
    )
    ratios = [by_tokens[one] / by_loss[one] for one in series]
    assert np.mean(ratios) > 3.0
