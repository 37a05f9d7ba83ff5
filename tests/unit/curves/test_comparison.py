from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes import curves
from probes.__main__ import main
from probes.curves.comparison import Comparison
from probes.dynamics.align import positions
from probes.dynamics.similarity import compare_sizes
from probes.dynamics.table import CurveTable
from tests.support.curve_family import LAWS, SIZES, STEPS, changed, family, run_of, with_values, write_csv
from tests.support.figures import lines_of, panel_of

RUNS = [run_of(size) for size in SIZES[:3]]
MATRIX = "Similarity of runs\nmean over scores, 1 for equal curves"


@pytest.fixture(scope="module")
def table():
    return family(sizes=SIZES[:3], steps=STEPS[1::2])


@pytest.fixture(scope="module")
def compared(table) -> Comparison:
    return curves.compare(table, draws=5)


def test_a_comparison_is_that_of_the_method_and_of_the_command(table, compared, tmp_path: Path, capsys):
    expected = compare_sizes(table, series=[law.series for law in LAWS], draws=5).tasks
    assert repr(list(compared)) == repr(list(expected)), "as text, since ceilings are unknown numbers"
    path, output, onsets = tmp_path / "scores.csv", tmp_path / "similar.json", tmp_path / "onsets.csv"
    words = ["compare", str(write_csv(table, path)), "--draws", "5", "--output", str(output), "--onsets", str(onsets)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{compared!r}\n"
    frame = compared.to_pandas()
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == json.loads(output.read_text())
    with onsets.open() as file:
        written = list(csv.DictReader(file))
    assert [row["task"] for row in written] == list(compared.onsets().task)
    assert [row["onset_tokens"] for row in written] == [
        "" if np.isnan(tokens) else str(tokens) for tokens in compared.onsets().onset_tokens.astype(float)
    ]


def test_the_curves_of_all_runs_stand_in_one_panel_for_each_score(table, compared):
    figure = compared.plot()
    assert [axes.get_title().split("\n")[0] for axes in figure.axes[: len(LAWS)]] == [
        str(one.series) for one in compared
    ]
    for panel, one in zip(figure.axes, compared, strict=False):
        drawn = lines_of(panel)
        assert len(drawn) == len(RUNS)
        for name, line in zip(RUNS, drawn, strict=True):
            curve = table.get(name, one.series)
            np.testing.assert_array_equal(line, np.stack([curve.tokens_C, curve.value_C]))
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in panel.get_lines()}
        assert len(looks) == len(RUNS), "runs differ in more than colour"
        assert len({line.get_marker() for line in panel.get_lines()}) == len(RUNS)


def test_the_matrix_holds_the_mean_similarity_of_each_pair(table, compared):
    matrix = compared.matrix()
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 1.0)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pair = compare_sizes(table.select(runs=[RUNS[first], RUNS[second]]), draws=2)
        assert matrix[first, second] == pytest.approx(np.mean([one.similarity for one in pair.tasks]), rel=1e-12)
    (image,) = panel_of(compared.plot(), MATRIX).get_images()
    np.testing.assert_array_equal(np.asarray(image.get_array()), matrix)


def test_equal_runs_are_alike_and_runs_without_a_common_score_are_not_compared(table):
    copy = {name: name.replace("made", "copy") for name in RUNS}
    twins = CurveTable(
        [*table.runs.values(), *(replace(table.runs[name], name=copy[name]) for name in RUNS)],
        [*table, *(replace(curve, run=copy[curve.run]) for curve in table)],
    )
    matrix = curves.compare(twins, run=[RUNS[0], copy[RUNS[0]]], draws=2).matrix()
    assert matrix == pytest.approx(np.ones((2, 2)))
    apart = CurveTable(
        table.runs.values(),
        [curve for curve in table if (curve.run == RUNS[0]) == (curve.task == "alpha") and curve.run != RUNS[2]],
    )
    lonely = curves.compare(apart, draws=2)
    assert np.isnan(lonely.matrix()[0, 1])
    assert len(lonely.plot().axes) >= len(LAWS)


@pytest.mark.parametrize("axis", ["tokens_per_parameter", "flops", "loss"])
def test_curves_are_drawn_on_the_axis_that_they_are_aligned_by(table, axis):
    compared = curves.compare(table, align=axis, metric="acc", draws=2)
    panel = compared.plot().axes[0]
    curve = table.get(RUNS[0], compared[0].series)
    place_C = positions(table, curve, axis=axis)
    (line, *_) = lines_of(panel)
    np.testing.assert_allclose(line[0], -place_C if axis == "loss" else np.exp(place_C))
    assert {"flops": "FLOPs", "loss": "loss"}.get(axis, "tokens per parameter") in panel.get_xlabel()
    assert panel.xaxis_inverted() == (axis == "loss")


def test_a_flat_curve_is_drawn_although_nothing_is_alike(table):
    flat = changed(table, lambda c: with_values(c, np.full(len(c), 0.3)) if c.task == "alpha" else c)
    figure = curves.compare(flat, metric="acc", draws=2).plot()
    assert any(axes.get_title().startswith("alpha") for axes in figure.axes)
