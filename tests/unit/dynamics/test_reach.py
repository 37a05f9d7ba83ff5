"""Predictions are refused, or made in another way, where neither references nor a run's own past come near."""

from dataclasses import replace

import numpy as np
import pytest

from probes.dynamics.predict import predict_finals
from probes.dynamics.table import CurveTable, RunFacts, Series, curve_of
from tests.support.curve_family import LAWS, LOSS, SIZES, STEPS, TOTAL_TOKENS, changed, family, run_of

RUNS = [run_of(size) for size in SIZES]
RUN, SMALLER = RUNS[3], RUNS[:3]
SEEN = 0.3 * TOTAL_TOKENS
SERIES = LAWS[0].series


def predict_final(table, run=RUN, series=SERIES, **options):
    (found,) = predict_finals(table, run, series=[series], **options)
    return found


@pytest.fixture(scope="module")
def seen():
    return family(steps=STEPS[1::2]).until(RUN, SEEN)


def test_a_position_a_little_beyond_the_references_is_still_theirs(seen):
    found = predict_final(seen, tokens=1.15 * TOTAL_TOKENS)
    assert found.refused is None and found.method.startswith(f"size and tokens, from {', '.join(SMALLER)}")


def test_beyond_the_references_the_own_past_is_used_and_that_is_said(seen):
    found = predict_final(seen, tokens=2 * TOTAL_TOKENS)
    assert found.refused is None and found.low < found.value < found.high
    assert found.method == (
        "own past, only 3 checkpoints; its references end at 3e+11 tokens and speak for 3.6e+11 at most"
    )


def test_a_position_nobody_comes_near_is_refused_with_the_range_that_is_answered(seen):
    found = predict_final(seen, tokens=1e15)
    assert np.isnan([found.value, found.low, found.high]).all()
    last = seen.get(RUN, SERIES).tokens_C[-1]
    assert found.refused == (
        f"its own past ends at {last:.4g} tokens and speaks for {10 * last:.4g} at most; "
        "its references end at 3e+11 tokens and speak for 3.6e+11 at most."
    )
    alone = predict_final(seen, references=[], tokens=11 * last)
    assert alone.refused == (
        f"its own past ends at {last:.4g} tokens and speaks for {10 * last:.4g} at most; "
        "there is no finished smaller run of its family."
    )
    assert predict_final(seen, references=[], tokens=9 * last).refused is None


def test_a_size_far_from_the_references_is_its_own_past(seen):
    for size, says in ((3.5e9, "size and tokens"), (9e10, "own past"), (9e6, "own past")):
        known = changed(seen, lambda c: c, facts={RUN: replace(seen.runs[RUN], parameters=size)})
        found = predict_final(known, references=SMALLER[:1])
        assert found.method.startswith(says), found
    assert found.method.endswith("; its references speak for 4e+07 to 4e+09 parameters, and it has 9e+06")


def test_a_run_of_unknown_size_is_its_own_past_and_that_is_said(seen):
    known = changed(seen, lambda c: c, facts={RUN: replace(seen.runs[RUN], parameters=None)})
    found = predict_final(known, references=SMALLER)
    assert found.method.endswith("; its references are of no use as long as its own size is unknown")


def test_one_checkpoint_without_references_is_refused_and_two_are_answered_widely(seen):
    first = seen.until(RUN, 3_000 * 2e6)
    assert predict_final(first, series=LOSS.series, references=[]).refused.startswith(
        "1 checkpoint(s) of its own after the very first ones, and 2 are needed; there is no finished smaller run"
    )
    whole = family()
    two, all_ = (whole.select(runs=[RUN]).until(RUN, tokens) for tokens in (3_000 * 2e6, 150_000 * 1e6))
    at = 2e10
    few = predict_final(two, series=LOSS.series, tokens=at)
    assert few.refused is None and few.method == "own past, only 2 checkpoints"
    many = predict_final(all_, series=LOSS.series, tokens=TOTAL_TOKENS)
    assert many.method == "own past" and few.high - few.low > 2 * (many.high - many.low)


def lone(values, *, task="task", chance=0.25, stderr=np.nan):
    """A run with some checkpoints of one task, 100B tokens apart, planned for 3T."""
    rows = [(step, step * 1e11, value, stderr) for step, value in enumerate(values, start=1)]
    return curve_of(rows, run="lone", series=Series(task, "acc", 0), domain="knowledge", chance=chance)


def test_three_checkpoints_of_a_long_run_are_answered_and_what_is_at_chance_is_not():
    curves = [lone([0.40, 0.45, 0.48]), lone([0.26, 0.24, 0.25], task="guessed")]
    table = CurveTable([RunFacts(name="lone", total_tokens=9e11)], curves)
    good, guessed = predict_finals(table, "lone")
    assert good.refused is None and 0.48 < good.value < 0.6 and 0.02 < good.high - good.low < 0.2
    assert guessed.refused.endswith("and the latest score is not above guessing.")


def test_an_interval_that_says_nothing_is_refused_instead():
    table = CurveTable([RunFacts(name="lone", total_tokens=1.9e12)], [lone([0.4, 0.4], chance=0.0, stderr=0.15)])
    found = predict_final(table, "lone", Series("task", "acc", 0))
    assert found.refused.startswith("its 80% interval would be ") and found.refused.endswith(", which says nothing.")
    assert np.isnan([found.value, found.low, found.high]).all()


def test_percentages_are_refused_with_the_remedy():
    table = CurveTable([RunFacts(name="lone", total_tokens=9e11)], [lone([40.0, 45.0, 59.2])])
    found = predict_final(table, "lone", Series("task", "acc", 0))
    assert found.refused == "its scores reach 59.2, and the best possible is 1: percentages must be divided by 100."
