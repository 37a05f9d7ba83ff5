from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probes import curves
from probes.__main__ import main
from probes.curves.trusted import Trust
from probes.dynamics.recommend import recommend
from probes.dynamics.table import LOSS_DOMAIN, CurveTable, Series, make_curve
from probes.dynamics.trust import judge
from tests.support.curve_family import SIZES, changed, family, run_of, with_values, write_csv
from tests.support.figures import lines_of, panel_of

RUN = run_of(SIZES[2])


def flat_alpha(curve):
    """One task never leaves chance."""
    if curve.task != "alpha":
        return curve
    return with_values(curve, 0.25 + 0.004 * np.random.default_rng(0).normal(size=len(curve)))


@pytest.fixture(scope="module")
def table():
    return changed(family(sizes=SIZES[1:3]), flat_alpha)


@pytest.fixture(scope="module")
def found(table) -> Trust:
    return curves.trust(table, run=RUN)


def test_verdicts_and_advice_are_those_of_the_method_and_of_the_command(table, found, tmp_path: Path, capsys):
    expected = judge(table, runs=[RUN])
    assert repr(list(found)) == repr(expected), "as text, since what has no chance has unknown numbers"
    assert list(found.advice[RUN].watch) == recommend(table, RUN, verdicts=expected)
    output = tmp_path / "trust.json"
    words = ["trust", str(write_csv(table, tmp_path / "scores.csv")), "--run", RUN, "--output", str(output)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{found!r}\n"
    frame = found.to_pandas()
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == json.loads(output.read_text())


def test_the_advice_comes_before_every_table_with_what_to_watch_and_what_to_distrust(table, tmp_path: Path, capsys):
    assert main(["trust", str(write_csv(table, tmp_path / "scores.csv"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    first_table = next(number for number, line in enumerate(lines) if line.startswith("task "))
    advice = lines[:first_table]
    for name in table.runs:
        assert any(line.startswith(f"{name}, 300B tokens: ") for line in advice)
    assert sum(line.startswith("watch beta (acc, 0-shot): ") for line in advice) == 2
    assert sum(line.startswith("distrust alpha (acc, 0-shot): ") for line in advice) == 2
    assert not any(line.startswith(("watch", "distrust", "soon", "decay:")) for line in lines[first_table:])


def test_decaying_scores_are_the_first_to_distrust(table):
    def sink(curve):
        lost = 0.15 * (np.arange(len(curve)) >= len(curve) - 4)
        return with_values(curve, curve.value_C - lost) if curve.task in ("gamma", "delta") else curve

    found = curves.trust(changed(table, sink), run=RUN)
    told = [line for line in found.remarks() if line.startswith("distrust")]
    assert [line.split(" ")[1] for line in told] == ["gamma", "delta", "alpha"]
    assert all("decays:" in line for line in told[:2])


def test_the_figure_marks_trusted_and_untrusted_curves_with_the_reason_and_their_noise(table, found):
    figure = found.plot()
    assert len(figure.axes) == len(found)
    for one in found:
        panel = panel_of(figure, f"{RUN}\n{one.series}: {'trusted' if one.trusted else 'not trusted'}")
        curve = table.get(RUN, one.series)
        assert any(np.array_equal(line, np.stack([curve.tokens_C, curve.value_C])) for line in lines_of(panel))
        line = panel.get_lines()[0]
        assert (line.get_linestyle(), line.get_marker()) == (("-", "o") if one.trusted else ("--", "x"))
        (note,) = [text.get_text() for text in panel.texts]
        assert one.reason.startswith(note.replace("\n", " "))
        band = panel.collections[0].get_paths()[0].vertices
        if not curve.lower_is_better:
            for sign in (-2, 2):
                ends = np.stack([curve.tokens_C, curve.value_C + sign * one.noise], axis=1)
                assert all(np.isclose(band, end).all(axis=1).any() for end in ends)
    assert "watch beta" in figure.get_supxlabel() and "distrust alpha" in figure.get_supxlabel()


def test_recommended_curves_are_drawn_first(found):
    watched = {str(one.series) for one in found.advice[RUN].watch}
    shown = found.plot(limit=len(watched))
    assert {axes.get_title().split("\n")[1].rpartition(":")[0] for axes in shown.axes} == watched
    assert f"{len(watched)} of {len(found)} are shown." in shown.get_supxlabel()


def test_a_curve_on_a_smooth_line_says_that_no_noise_was_measured():
    tokens = np.arange(1, 13) * 2e9
    losses = {"rises": 5 - 0.1 * np.log(tokens), "falls": 1 + 0.1 * np.log(tokens)}
    made = [
        make_curve(
            np.arange(1, 13) * 1000.0, tokens, values, np.full(12, np.nan),
            run="mine", series=Series(task, "loss"), domain=LOSS_DOMAIN,
        )
        for task, values in losses.items()
    ]  # fmt: skip
    found = curves.trust(CurveTable([], made))
    rises, falls = found.records
    none = "no noise was measured, since its scores lie on a smooth line"
    assert rises.trusted and rises.reason == f"rises with time (Spearman 1.00); {none}; no decay"
    assert not falls.trusted and falls.reason.endswith(f"ends no better than it began; {none}")
    assert [(row["gain"], row["decay"], row["noise"]) for row in found.rows()] == [(None, None, None)] * 2
    assert "times its noise" not in found.text()
