"""The faults of the benchmark of verdicts do what they say, on curves whose smooth course is known."""

from __future__ import annotations

import numpy as np
import pytest

from probes.dynamics.table import Series, TaskCurve, make_curve
from tests.bench.dynamics import faults, modes
from tests.bench.dynamics.faults import Place
from tests.bench.dynamics.remember import remembered

COUNT, LAST = 20, 11
TOKENS_C = 1e9 * np.arange(1, COUNT + 1)
# Straight in log tokens, so that local lines through any neighbours give back the line itself.
LINE_C = 0.3 + 0.1 * np.log10(TOKENS_C / 1e9)
PLACE = Place(float(TOKENS_C[LAST]), "arc_easy", "piqa", "knowledge")
AFTER_C = np.arange(COUNT) > LAST


def curve_of(task: str, *, domain: str, chance: float, metric: str = "acc", value_C: np.ndarray = LINE_C) -> TaskCurve:
    return make_curve(
        np.arange(1, COUNT + 1) * 1000,
        TOKENS_C,
        value_C,
        np.full(COUNT, 0.001),
        run="run",
        series=Series(task, metric),
        domain=domain,
        chance=chance,
    )


ARC = curve_of("arc_easy", domain="knowledge", chance=0.25)
SCIQ = curve_of("sciq", domain="knowledge", chance=0.25, value_C=LINE_C + 0.1)
PIQA = curve_of("piqa", domain="commonsense", chance=0.5, value_C=LINE_C + 0.3)
LOSS = curve_of("c4_en", domain="loss", chance=float("nan"), metric="ce_loss", value_C=5 - LINE_C)
CURVES = [ARC, SCIQ, PIQA, LOSS]


@pytest.mark.parametrize(
    ("whose", "concerned"),
    [("task", {"arc_easy"}), ("domain", {"arc_easy", "sciq"}), ("all", {"arc_easy", "sciq", "piqa"})],
)
def test_a_fall_takes_its_share_of_what_is_above_chance_and_nothing_before_or_elsewhere(
    whose: str, concerned: set[str]
) -> None:
    for before, curve in zip(CURVES, faults.fall(0.5, whose)(CURVES, PLACE), strict=True):
        expected_C = before.value_C.copy()
        if before.task in concerned:
            expected_C[AFTER_C] = before.chance + 0.5 * (before.value_C[AFTER_C] - before.chance)
        np.testing.assert_allclose(curve.value_C, expected_C, atol=1e-9)


def test_a_fall_to_chance_keeps_the_checkpoint_noise() -> None:
    noise_C = 0.004 * np.random.default_rng(0).standard_normal(COUNT)
    noisy = curve_of("arc_easy", domain="knowledge", chance=0.25, value_C=LINE_C + noise_C)
    (fallen,) = faults.fall(1.0, "task")([noisy], PLACE)
    assert abs(fallen.value_C[AFTER_C].mean() - 0.25) < 0.004
    assert 0.001 < fallen.value_C[AFTER_C].std() < 0.008


def test_bits_per_byte_fall_back_towards_where_they_began() -> None:
    bits = curve_of("arc_easy", domain="knowledge", chance=float("nan"), metric="bpb", value_C=2.0 - LINE_C)
    (fallen,) = faults.fall(1.0, "task")([bits], PLACE)
    np.testing.assert_allclose(fallen.value_C[AFTER_C], 2.0 - LINE_C[0], atol=1e-9)


def test_a_slow_loss_is_whole_after_ten_checkpoints() -> None:
    lost_C = ARC.value_C - faults.slow_loss(CURVES, PLACE)[0].value_C
    has_C = ARC.value_C - 0.25
    assert lost_C[LAST] == 0
    np.testing.assert_allclose((lost_C / has_C)[AFTER_C], 0.08 * np.arange(1, COUNT - LAST) / 10, atol=1e-9)


def test_contamination_raises_all_tasks_of_one_domain_and_no_score_above_1() -> None:
    high = curve_of("sciq", domain="knowledge", chance=0.25, value_C=LINE_C + 0.55)
    arc, sciq, piqa = faults.contamination([ARC, high, PIQA], PLACE)
    np.testing.assert_allclose(arc.value_C - ARC.value_C, 0.10 * AFTER_C, atol=1e-9)
    assert sciq.value_C.max() == 1.0
    np.testing.assert_array_equal(piqa.value_C, PIQA.value_C)


def test_a_dip_is_one_checkpoint_of_one_task() -> None:
    changed = [np.flatnonzero(a.value_C != b.value_C) for a, b in zip(CURVES, faults.dip(CURVES, PLACE), strict=True)]
    assert [list(where) for where in changed] == [[LAST + 1], [], [], []]


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_tokens_counted_wrongly_leave_steps_and_scores_as_they_were(factor: float) -> None:
    for before, curve in zip(CURVES, faults.counted(factor)(CURVES, PLACE), strict=True):
        np.testing.assert_array_equal(curve.value_C, before.value_C)
        np.testing.assert_array_equal(curve.step_C, before.step_C)
        np.testing.assert_allclose(np.diff(curve.tokens_C), np.where(AFTER_C[1:], factor, 1.0) * 1e9)


def test_two_tasks_change_places_after_the_place_only() -> None:
    arc, _, piqa, _ = faults.swapped(CURVES, PLACE)
    np.testing.assert_array_equal(arc.value_C, np.where(AFTER_C, PIQA.value_C, ARC.value_C))
    np.testing.assert_array_equal(piqa.value_C, np.where(AFTER_C, ARC.value_C, PIQA.value_C))


def test_louder_noise_is_three_times_what_was_about_the_course() -> None:
    noise_C = 0.004 * np.random.default_rng(1).standard_normal(COUNT)
    noisy = curve_of("arc_easy", domain="knowledge", chance=0.25, value_C=LINE_C + noise_C)
    (loud,) = faults.louder([noisy], PLACE)
    course = faults.course_of(noisy, PLACE.after)
    np.testing.assert_allclose((loud.value_C - course.smooth_C)[AFTER_C], 3.0 * course.noise_C[AFTER_C])


def test_a_regress_runs_backwards_and_a_plateau_and_a_frozen_run_stand_still() -> None:
    np.testing.assert_allclose(
        faults.regress(CURVES, PLACE)[0].value_C[AFTER_C], LINE_C[LAST - 1 : LAST - 9 : -1], atol=1e-9
    )
    for inject in (faults.plateau, faults.frozen):
        for before, curve in zip(CURVES, inject(CURVES, PLACE), strict=True):
            np.testing.assert_allclose(curve.value_C[AFTER_C], before.value_C[LAST], atol=1e-9)


def test_only_tasks_with_something_to_lose_can_fall() -> None:
    flat = curve_of("sciq", domain="knowledge", chance=0.25, value_C=np.full(COUNT, 0.253))
    assert faults.can_fall([ARC, flat, PIQA, LOSS], PLACE.after) == [("arc_easy", "knowledge"), ("piqa", "commonsense")]
    assert faults.place_at([ARC, flat, LOSS], PLACE.after, 0) is None


def test_remembered_fits_and_judgements_give_the_verdicts_of_the_product() -> None:
    case = modes.pythia_cases(False, 5)[1]
    tokens = case.checks["siblings"][9]
    fall = faults.fall(0.5, "task")(case.curves, Place(case.checks["siblings"][8], "sciq", "piqa", "knowledge"))
    plain = [case.state("siblings", tokens), case.state("siblings", tokens, fall)]
    with remembered():
        for _ in range(2):
            again = [case.state("siblings", tokens), case.state("siblings", tokens, fall)]
            assert [repr(state) for state in again] == [repr(state) for state in plain]
