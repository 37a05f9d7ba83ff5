from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probes import curves
from probes.__main__ import main
from probes.curves.states import States
from probes.dynamics.state import assess, state_rows
from tests.support.curve_family import SIZES, STEPS, changed, family, run_of, with_values, write_csv
from tests.support.figures import errorbar_ends, lines_of, panel_of

RUNS = [run_of(size) for size in SIZES]
RUN, OTHERS = RUNS[2], [*RUNS[:2], *RUNS[3:]]
NOW = 83_000


def dropped(curve):
    """A fifth of the score above chance is lost at the last checkpoint."""
    if curve.lower_is_better or curve.run != RUN:
        return curve
    lost = 0.2 * (curve.value_C - curve.chance) * (np.arange(len(curve)) == len(curve) - 1)
    return with_values(curve, curve.value_C - lost)


@pytest.fixture(scope="module")
def table():
    return changed(family(offset=1.0, seed=1, steps=STEPS[1:]).until(RUN, NOW * 2e6), dropped)


@pytest.fixture(scope="module")
def found(table) -> States:
    return curves.state(table, run=RUN, references=OTHERS)


def test_the_state_is_that_of_the_method_and_of_the_command(table, found, tmp_path: Path, capsys):
    expected = assess(table, RUN, references=OTHERS)
    assert list(found) == [expected] and found.verdict == expected.verdict == "act"
    output = tmp_path / "state.json"
    path = str(write_csv(table, tmp_path / "scores.csv"))
    assert main(["state", path, "--run", RUN, "--references", *OTHERS, "--output", str(output)]) == 4
    assert capsys.readouterr().out == f"{found!r}\n"
    assert found.to_pandas().to_dict("records") == json.loads(output.read_text()) == state_rows(expected)


def test_the_figure_has_what_was_seen_and_expected_with_a_band_and_the_verdict(table, found):
    (state,) = found
    figure = found.plot()
    tasks = [(domain, task) for domain in state.domains for task in domain.tasks]
    assert len(figure.axes) == len(tasks) > 2
    for domain, task in tasks:
        panel = panel_of(figure, f"{RUN}: act\n{task.series}\n{domain.domain}: {domain.verdict}")
        curve = table.get(RUN, task.series)
        drawn = lines_of(panel)
        assert any(np.array_equal(line, np.stack([curve.tokens_C, curve.value_C])) for line in drawn)
        ((place, low, high),) = errorbar_ends(panel)
        spread = (task.seen - task.expected) / task.deviation
        assert (low, high) == (pytest.approx(task.expected - 2 * spread), pytest.approx(task.expected + 2 * spread))
        assert place == pytest.approx(np.exp(np.log(curve.tokens_C[-task.window :]).mean()))
        assert any(line.shape == (2, 1) and line[1, 0] == task.seen for line in drawn)
        assert f"{task.deviation:+.1f}" in [text.get_text() for text in panel.texts]
    assert state.evidence[0].sentence[:40] in figure.get_supxlabel()


def test_what_cannot_be_judged_is_unknown_with_the_reason_and_has_a_figure_that_says_so(table):
    short = table.select(runs=[RUN]).until(RUN, 3_000 * 2e6)
    found = curves.state(short)
    assert found.verdict == "unknown" and found[0].unknown
    assert found[0].unknown[:30] in found._repr_html_()
    figure = found.plot()
    assert not figure.axes[0].lines and "unknown" in figure.get_supxlabel()


def test_a_reference_that_cannot_be_one_is_left_out_and_that_is_said(table):
    found = curves.state(table, run=OTHERS[0], references=[RUN, OTHERS[1]])
    assert found.left_out == {RUN: "it is not at its planned end"}
    said = f"{RUN} is no reference: it is not at its planned end."
    assert said in repr(found) and said in found._repr_html_() and said in found.plot().get_supxlabel()


def test_a_share_of_a_run_is_judged_as_if_only_that_had_been_seen(table):
    total = table.runs[OTHERS[0]].total_tokens
    found = curves.state(table, run=OTHERS[0], references=OTHERS[1:], seen=0.4)
    told = assess(table.until(OTHERS[0], 0.4 * total), OTHERS[0], references=OTHERS[1:])
    assert [repr(state) for state in found] == [repr(told)], "as text: a level that is not known (nan) equals no other"
