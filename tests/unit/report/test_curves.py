import math

import pytest

from probes.report.curves import MEAN_TASK, Change, Curve, chance_of, curves_of, leading_metrics
from tests.support.synthetic_run import measurement


def rows(*values: tuple[int, str, str, float, float | None]) -> list[dict]:
    return [measurement(step, "d", task, metric, value, error).to_json() for step, task, metric, value, error in values]


def curve(found: list[Curve], task: str, metric: str = "acc") -> Curve:
    (match,) = [curve for curve in found if curve.task == task and curve.metric == metric]
    return match


def test_a_step_measured_again_counts_once_with_its_later_value() -> None:
    found = curves_of(rows((4, "a", "acc", 0.2, 0.1), (2, "a", "acc", 0.1, 0.1), (4, "a", "acc", 0.3, 0.1)))
    assert [(point.step, point.value) for point in curve(found, "a").points] == [(2, 0.1), (4, 0.3)]


def test_the_change_is_measured_in_its_standard_error() -> None:
    found = curves_of(rows((0, "a", "acc", 0.25, 0.03), (9, "a", "acc", 0.50, 0.04)))
    assert curve(found, "a").change == Change(difference=0.25, stderr=pytest.approx(0.05), in_stderr=pytest.approx(5.0))


def test_an_unknown_error_leaves_the_change_without_one() -> None:
    found = curves_of(rows((0, "a", "acc", 0.25, None), (9, "a", "acc", 0.50, 0.04)))
    assert curve(found, "a").change == Change(difference=0.25, stderr=None, in_stderr=None)


def test_a_domain_without_a_mean_gets_one_at_the_steps_all_tasks_share() -> None:
    found = curves_of(rows((0, "a", "acc", 0.2, 0.03), (0, "b", "acc", 0.4, 0.04), (5, "a", "acc", 0.3, 0.03)))
    (point,) = curve(found, MEAN_TASK).points
    assert (point.step, point.value) == (0, pytest.approx(0.3))
    assert point.stderr == pytest.approx(math.hypot(0.03, 0.04) / 2)


def test_a_recorded_mean_is_kept() -> None:
    found = curves_of(rows((0, "a", "acc", 0.2, None), (0, "b", "acc", 0.4, None), (0, "mean", "acc", 0.9, None)))
    assert curve(found, MEAN_TASK).points[0].value == 0.9
    assert found[0].task == MEAN_TASK


def test_another_plan_is_another_curve_with_its_own_label() -> None:
    first, second = rows((0, "a", "acc", 0.2, None), (5, "a", "acc", 0.3, None))
    second["plan_hash"] = "ffffffffff"
    assert [found.label for found in curves_of([first, second])] == ["a, plan a1b2c3", "a, plan ffffff"]


def test_unusable_rows_and_variants_by_length_are_left_out() -> None:
    usable = rows((0, "a", "acc", 0.2, float("nan")), (0, "a", "correct_prob_per_byte", 0.2, None))
    found = curves_of([*usable, {}, {"task": "a"}, usable[0] | {"value": None}, usable[0] | {"value": float("inf")}])
    assert [(one.task, one.metric, one.points[0].stderr) for one in found] == [("a", "acc", None)]


def test_figures_lead_with_accuracy_and_leave_margins_to_the_table() -> None:
    metrics = ("margin", "zzz", "gold_bpb", "norm_correct_prob", "correct_prob", "acc")
    found = curves_of(rows(*((0, "a", metric, 0.1, None) for metric in metrics)))
    assert leading_metrics(found) == ["acc", "gold_bpb", "norm_correct_prob", "zzz"]


def test_guessing_is_only_known_when_known_for_every_task() -> None:
    found = curves_of(rows((0, "a", "acc", 0.2, None), (0, "b", "acc", 0.4, None)))
    assert chance_of(found, {"a": 0.25, "b": 0.5}) == 0.375
    assert chance_of(found, {"a": 0.25}) is None
