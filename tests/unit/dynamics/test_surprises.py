"""Deviations from expectation: how far they must be for each verdict, with and without a fall of the own curves."""

import pytest

from probes.dynamics.evidence import ACT, WATCH
from probes.dynamics.expectation import Surprise
from probes.dynamics.published import PYTHIA_TOKENS_PER_STEP, pythia_interventions
from probes.dynamics.state import assess
from probes.dynamics.surprises import fell_behind
from probes.dynamics.table import Series


def window(deviation, *, tasks):
    return [
        Surprise(
            series=Series(f"task{number}", "acc"),
            domain="knowledge",
            window=2,
            deviation=deviation,
            confirmed=deviation,
            seen=0.4,
            expected=0.5,
        )
        for number in range(tasks)
    ]


@pytest.mark.parametrize(("tasks", "near", "far"), [(1, -5.0, -9.0), (3, -4.0, -8.0)])
def test_a_deviation_is_act_with_a_fall_of_the_own_curves_or_twice_as_far(tasks, near, far):
    def verdict(deviation, *, fell):
        (evidence,) = fell_behind([window(deviation, tasks=tasks)], limit=ACT, alone=False, fell=fell)
        return evidence.verdict

    assert verdict(near, fell=True) == ACT
    assert verdict(near, fell=False) == WATCH
    assert verdict(far, fell=False) == ACT


def test_a_stretch_of_low_perplexities_of_a_run_that_has_lost_nothing_is_only_watch():
    run = "intervention-1.4b-deduped-long"
    state = assess(pythia_interventions().until(run, 135_000 * PYTHIA_TOKENS_PER_STEP), run, references=[])
    assert [(one.kind, one.verdict) for one in state.evidence] == [("loss", WATCH)]
