import math

import numpy as np
import pytest

from probes.dynamics.table import CurveTable, RunFacts, Series, TaskCurve, curve_of, make_curve

PIQA = Series("piqa", "acc", 0)


def curve(run: str = "a", values: tuple[float, ...] = (0.5, 0.6, 0.7), **changes: object) -> TaskCurve:
    rows = [(step, step * 100.0, value, 0.01) for step, value in enumerate(values)]
    settings = {"run": run, "series": PIQA, "domain": "commonsense", "chance": 0.5} | changes
    return curve_of(rows, **settings)


def test_rows_come_by_tokens_and_the_later_of_two_at_one_place_counts() -> None:
    made = curve_of(
        [(20, 200, 0.3, 0.1), (10, 100, 0.1, 0.1), (20, 200, 0.4, 0.2), (30, 300, math.nan, 0.1)],
        run="a", series=PIQA, domain="commonsense",
    )  # fmt: skip
    assert made.tokens_C.tolist() == [100.0, 200.0]
    assert made.value_C.tolist() == [0.1, 0.4]
    assert made.stderr_C.tolist() == [0.1, 0.2]
    assert made.step_C.dtype == np.int64 and made.step_C.tolist() == [10, 20]


def test_a_curve_without_rows_is_no_curve_of_a_table() -> None:
    nothing = make_curve(*(np.zeros(0),) * 4, run="a", series=PIQA, domain="commonsense")
    assert len(nothing) == 0
    assert len(CurveTable([RunFacts(name="a")], [nothing])) == 0


def test_steps_that_are_not_known_are_minus_one_and_stay_when_early_steps_go() -> None:
    made = curve_of(
        [(math.nan, 100, 0.1, math.nan), (5, 200, 0.2, math.nan), (50, 300, 0.3, math.nan)],
        run="a", series=PIQA, domain="x",
    )  # fmt: skip
    assert made.step_C.tolist() == [-1, 5, 50]
    assert made.since_step(10).value_C.tolist() == [0.1, 0.3]


def test_rescaling_puts_chance_at_nothing_and_all_right_at_one() -> None:
    rescaled = curve(values=(0.5, 0.75, 1.0)).rescaled()
    assert rescaled.value_C.tolist() == [0.0, 0.5, 1.0]
    assert rescaled.stderr_C == pytest.approx([0.02] * 3)
    assert rescaled.chance == 0.0
    unknown = curve(chance=math.nan)
    assert unknown.rescaled() is unknown


def test_what_was_known_at_some_tokens_includes_the_checkpoint_at_them() -> None:
    assert curve().until(100.0).value_C.tolist() == [0.5, 0.6]
    assert curve().until(99.0).value_C.tolist() == [0.5]
    table = CurveTable([], [curve("a"), curve("b")])
    cut = table.until("a", 100.0)
    assert [len(one) for one in cut] == [2, 3]


def test_flops_of_long_runs_do_not_overflow() -> None:
    facts = RunFacts(name="a", parameters=7e9)
    assert facts.flops(np.array([2_000_000_000_000])) == pytest.approx([6 * 7e9 * 2e12])
    assert np.isnan(RunFacts(name="a").flops(np.array([1.0]))).all()
    assert RunFacts(name="a", parameters=7e9, flops_per_token=2.0).flops(np.array([3.0])).tolist() == [6.0]


def test_of_two_plans_of_one_series_the_longer_curve_is_found_and_both_are_there() -> None:
    short, long = curve(values=(0.5,), plan="old"), curve(plan="new")
    for order in ([short, long], [long, short]):
        table = CurveTable([], order)
        assert table.get("a", PIQA) is long
        assert table.of_run("a") == [long]
        assert len(table) == 2 and table.series() == [PIQA]


def test_runs_come_by_size_then_by_length_then_by_name() -> None:
    facts = [
        RunFacts(name="unknown"),
        RunFacts(name="large", parameters=7e9),
        RunFacts(name="b", parameters=1e9, total_tokens=2e9),
        RunFacts(name="a", parameters=1e9, total_tokens=2e9),
        RunFacts(name="short", parameters=1e9, total_tokens=1e9),
    ]
    table = CurveTable(facts, [curve(name) for name in ("unknown", "large", "b", "a", "short")])
    assert [found.run for found in table.of_series(PIQA)] == ["short", "a", "b", "large", "unknown"]
    assert [found.run for found in table.of_series(PIQA, runs=["large", "a"])] == ["a", "large"]


def test_a_run_is_finished_at_its_planned_end_and_without_a_plan() -> None:
    facts = [RunFacts(name="a", total_tokens=200.5), RunFacts(name="b", total_tokens=400.0), RunFacts(name="c")]
    table = CurveTable(facts, [curve("a"), curve("b"), curve("c")])
    assert [table.is_finished(name) for name in "abc"] == [True, False, True]
    assert table.last_tokens("a") == 200.0


def test_a_part_of_a_table_keeps_the_facts_of_its_runs_only() -> None:
    facts = [RunFacts(name="a"), RunFacts(name="b")]
    other = curve("a", series=Series("arc_easy", "acc", 0))
    table = CurveTable(facts, [curve("a"), other, curve("b")])
    assert list(table.select(runs=["b"]).runs) == ["b"]
    assert list(table.select(series=[PIQA], keep=lambda one: one.run == "a")) == [table.curves[0]]
    assert table.get("a", Series("nothing", "acc")) is None and table.of_run("nobody") == []


def test_a_run_without_facts_gets_empty_ones() -> None:
    table = CurveTable([], [curve("a")])
    assert table.runs == {"a": RunFacts(name="a")}
    assert table.last_tokens("a") == 200.0
