"""Means, axes and the choice of runs that a comparison draws."""

import math

import numpy as np
import pytest

from probes.dynamics.metrics import BITS_PER_BYTE, PLAINEST_FIRST
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, RunFacts, Series, TaskCurve, curve_of
from probes.report.compare_curves import (
    Axis,
    best_series,
    domain_panels,
    highlighted,
    overall,
    shared_axes,
    thinned,
)

TOKENS = (0.0, 1e9, 2e9, 4e9)


def curve(run: str, task: str, values: tuple[float, ...], **changes: object) -> TaskCurve:
    told = {"metric": "acc", "shots": 0, "domain": "commonsense", "chance": 0.5, "tokens": TOKENS} | changes
    rows = [
        (place, tokens, value, 0.01) for place, (tokens, value) in enumerate(zip(told["tokens"], values, strict=True))
    ]
    series = Series(task, told["metric"], told["shots"])
    return curve_of(rows, run=run, series=series, domain=told["domain"], chance=told["chance"])


def test_a_mean_is_over_rescaled_scores_without_the_checkpoint_before_training() -> None:
    table = CurveTable(
        [], [curve("a", "piqa", (0.5, 0.5, 0.75, 1.0)), curve("a", "copa", (0.5, 0.75, 0.75, 0.5), chance=0.25)]
    )
    (panel,) = domain_panels(table, PLAINEST_FIRST)
    assert panel.domain == "commonsense" and list(panel.tasks) == ["piqa", "copa"]
    (mean,) = panel.means
    assert mean.tokens_C.tolist() == [1e9, 2e9, 4e9] and mean.step_C.tolist() == [1, 2, 3]
    assert mean.value_C == pytest.approx([(0.0 + 2 / 3) / 2, (0.5 + 2 / 3) / 2, (1.0 + 1 / 3) / 2])
    assert mean.stderr_C[0] == pytest.approx(math.hypot(0.01 / 0.5, 0.01 / 0.75) / 2)


def test_a_mean_is_over_tasks_and_checkpoints_that_all_have() -> None:
    table = CurveTable(
        [],
        [
            curve("a", "piqa", (0.5, 0.6, 0.7, 0.8)),
            curve("a", "copa", (0.6, 0.9, 1.0), tokens=(0.0, 2e9, 4e9)),
            curve("b", "piqa", (0.5, 0.5, 0.5, 0.5)),
            curve("b", "copa", (0.5, 0.5, 0.5, 0.5)),
            curve("b", "siqa", (0.5, 0.5, 0.5, 0.5)),
        ],
    )
    (panel,) = domain_panels(table, PLAINEST_FIRST)
    assert list(panel.tasks) == ["piqa", "copa"]
    assert panel.means[0].tokens_C.tolist() == [2e9, 4e9]
    assert panel.means[0].value_C == pytest.approx([(0.4 + 0.8) / 2, (0.6 + 1.0) / 2])


def test_runs_without_a_task_in_common_with_most_are_left_out() -> None:
    scored = [curve(run, task, (0.5, 0.6, 0.7, 0.8)) for run in "ab" for task in ("piqa", "copa")]
    table = CurveTable([], [*scored, curve("c", "siqa", (0.5, 0.6, 0.7, 0.8))])
    (panel,) = domain_panels(table, PLAINEST_FIRST)
    assert [mean.run for mean in panel.means] == ["a", "b"] and list(panel.tasks) == ["piqa", "copa"]


def test_of_a_task_the_metric_that_most_runs_have_counts() -> None:
    values = (0.5, 0.6, 0.7, 0.8)
    curves = [curve("a", "piqa", values), curve("a", "piqa", values, metric="acc_norm")]
    curves += [curve("b", "piqa", values, metric="acc_norm"), curve("a", "arc_easy", values, shots=5)]
    curves += [curve("a", "arc_easy", values, shots=0), curve("a", "mystery", values, chance=math.nan)]
    curves += [curve("a", "crows_pairs", values, domain="bias"), curve("a", "train", values, domain=LOSS_DOMAIN)]
    assert best_series(CurveTable([], curves), PLAINEST_FIRST) == {
        "piqa": Series("piqa", "acc_norm", 0),
        "arc_easy": Series("arc_easy", "acc", 0),
    }


def test_where_some_tasks_are_wanted_the_mean_is_over_them_alone() -> None:
    values = (0.5, 0.6, 0.7, 0.8)
    curves = [curve("a", "piqa", values), curve("a", "copa", (0.5, 0.5, 0.5, 0.5))]
    curves += [curve("a", "logiqa", (0.2, 0.3, 0.2, 0.3), domain="reasoning", chance=0.25)]
    panels = domain_panels(CurveTable([], curves), PLAINEST_FIRST, wanted={Series("piqa", "acc", 0)})
    assert [(panel.domain, list(panel.tasks), panel.is_telling) for panel in panels] == [
        ("commonsense", ["piqa"], True),
        ("reasoning", ["logiqa"], False),
    ]
    (mean,) = overall(panels)
    assert mean.value_C == pytest.approx([0.2, 0.4, 0.6]), "a domain that tells nothing is not in the mean of all"


def test_bits_per_byte_have_panels_of_their_own() -> None:
    panels = domain_panels(olmo_ladder(), BITS_PER_BYTE)
    assert panels and all(mean.lower_is_better for panel in panels for mean in panel.means)
    assert not domain_panels(pythia(deduped=False, num_fewshot=0), BITS_PER_BYTE)


def test_the_mean_over_domains_is_of_runs_that_are_in_the_same_ones() -> None:
    values = (0.5, 0.6, 0.7, 0.8)
    curves = [curve(run, "piqa", values) for run in "abc"]
    curves += [curve(run, "arc_easy", values, domain="knowledge", chance=0.25) for run in "ab"]
    found = overall(domain_panels(CurveTable([], curves), PLAINEST_FIRST))
    assert [mean.run for mean in found] == ["a", "b"]
    assert found[0].value_C[-1] == pytest.approx(((0.8 - 0.5) / 0.5 + (0.8 - 0.25) / 0.75) / 2)
    assert overall([]) == []


def test_axes_are_those_on_which_all_runs_have_a_place() -> None:
    table = pythia(deduped=False, num_fewshot=0)
    axes, missing = shared_axes(table, list(table.runs))
    assert [axis.key for axis in axes] == ["tokens", "tokens_per_parameter", "flops", "loss"] and not missing
    unknown = CurveTable([RunFacts(name="a")], [curve("a", "piqa", (0.5, 0.6, 0.7, 0.8))])
    axes, missing = shared_axes(unknown, ["a"])
    assert [axis.key for axis in axes] == ["tokens"]
    assert "The size of a is not known; --runs" in missing and "loss" in missing


def test_places_are_tokens_their_ratio_to_the_size_flops_and_a_falling_loss() -> None:
    facts = RunFacts(name="a", parameters=1e9)
    loss = curve("a", "c4_en", (4.0, 3.0, 3.5, 2.0), metric="loss", domain=LOSS_DOMAIN, chance=math.nan)
    scored = curve("a", "piqa", (0.6, 0.7, 0.8), tokens=TOKENS[1:])
    table = CurveTable([facts], [loss, scored])
    placed = {axis.key: axis.place(table, scored) for axis in shared_axes(table, ["a"])[0]}
    assert placed["tokens"] == pytest.approx([1e9, 2e9, 4e9])
    assert placed["tokens_per_parameter"] == pytest.approx([1.0, 2.0, 4.0])
    assert placed["flops"] == pytest.approx([6e18, 12e18, 24e18])
    assert placed["loss"] == pytest.approx([3.0, 3.0, 2.0]), "a loss that rises again is no way back"
    other = curve("b", "piqa", (0.6, 0.7, 0.8), tokens=TOKENS[1:])
    both = CurveTable([facts], [loss, scored, other])
    assert np.isnan(Axis(key="loss", title="", loss=loss.series).place(both, other)).all()


def test_few_runs_are_all_in_colour_and_of_many_those_under_way_and_the_best_of_each_size() -> None:
    few = pythia(deduped=False, num_fewshot=0)
    assert highlighted(few, {}) == few.by_size(few.runs)
    facts = [
        RunFacts(name=f"{size}-{place}", parameters=size * 1e9, total_tokens=4e9 if place else 1e12)
        for size in (1, 2, 4)
        for place in range(8)
    ]
    table = CurveTable(facts, [curve(fact.name, "piqa", (0.5, 0.6, 0.7, 0.8)) for fact in facts])
    scores = {fact.name: float(fact.name[-1]) for fact in facts}
    assert highlighted(table, scores, most=6) == ["1-7", "1-0", "2-7", "2-0", "4-7", "4-0"]


def test_thinning_keeps_both_ends_and_is_dense_early_and_late() -> None:
    long = curve("a", "piqa", tuple(np.linspace(0.5, 0.9, 1000)), tokens=tuple(1e6 * np.arange(1000)))
    kept = thinned(long, 40)
    assert len(kept) <= 40 and kept[0] == 0 and kept[-1] == 999
    assert np.sum(kept < 100) > 12 and np.max(np.diff(kept)) < 60
    assert thinned(long.where(np.arange(7)), 40).tolist() == list(range(7))
    flat = curve("a", "piqa", (0.5, 0.6), tokens=(1e9, 2e9))
    assert thinned(flat, 2).tolist() == [0, 1]
