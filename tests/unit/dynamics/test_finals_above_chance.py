"""Scores of which only ends are known: judged across models, on tables whose truth is known."""

import numpy as np
import pytest

from probes.dynamics.finals_above_chance import finals_at_chance, has_finals_only
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve

SIZES = np.geomspace(1e7, 1e9, 12)


def finals(scores, *, chance=0.25, items=1000, sizes=SIZES):
    """A table of final models with 20 tokens a parameter; `scores` by task, one value a size."""
    facts = [RunFacts(name=f"run-{index}", parameters=size) for index, size in enumerate(sizes)]
    curves = []
    for task, values in scores.items():
        for fact, value in zip(facts, values, strict=True):
            error = np.sqrt(value * (1 - value) / items) if items else np.nan
            row = [np.array([number]) for number in (-1.0, 20 * fact.parameters, value, error)]
            curves.append(make_curve(*row, run=fact.name, series=Series(task, "acc"), domain="x", chance=chance))
    return CurveTable(facts, curves)


def judged(table):
    return {one.task: reason for one, reason in finals_at_chance(table, table.series()).items()}


def test_a_score_that_rises_with_compute_above_chance_is_kept():
    table = finals({"rises": np.linspace(0.26, 0.45, 12)})
    assert has_finals_only(table, table.series()[0])
    assert judged(table) == {}


@pytest.mark.parametrize("items", [1000, 0])
def test_guessing_is_refused_and_so_is_a_rise_that_stays_below_guessing(items):
    guessed = 0.25 + np.random.default_rng(0).normal(0, 0.014, 12)
    found = judged(finals({"guessed": guessed, "below": np.linspace(0.1, 0.2, 12)}, items=items))
    assert "no rise with compute over 12 models" in found["guessed"]
    assert "at chance: the third of the models with the most compute" in found["below"]


def test_a_level_above_chance_without_a_rise_is_refused():
    assert "no rise with compute" in judged(finals({"flat": np.full(12, 0.4)}))["flat"]
    falling = judged(finals({"falls": np.linspace(0.5, 0.4, 12)}))
    assert "rank correlation -1.00" in falling["falls"]


def test_of_two_hundred_guessed_tasks_hardly_one_passes_for_a_score():
    scores = np.random.default_rng(1).binomial(1000, 0.25, size=(200, 12)) / 1000
    found = judged(finals({f"task{index}": values for index, values in enumerate(scores)}))
    assert len(found) == 200


def test_a_score_without_a_known_chance_needs_the_rise_alone():
    table = finals({"rises": np.linspace(0.05, 0.2, 12)}, chance=np.nan)
    assert judged(table) == {}


def test_too_few_models_are_refused_with_how_many_there_are():
    found = judged(finals({"rises": [0.3, 0.4, 0.5, 0.6]}, sizes=SIZES[:4]))
    assert "4 finished models of known size: 5 are needed" in found["rises"]


def test_runs_with_curves_are_not_judged_by_their_ends():
    steps = np.arange(1.0, 9.0) * 1000
    series = Series("task", "acc")
    curve = make_curve(steps, steps, steps / 1e4, steps / 1e6, run="run", series=series, domain="x", chance=0.25)
    assert not has_finals_only(CurveTable([RunFacts(name="run")], [curve]), series)
