from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from pretrain.errors import ProbeError
from probes import curves
from probes.__main__ import main
from probes.curves.predictions import Predictions
from probes.dynamics.predict import predict_finals
from tests.support.curve_family import LAWS, SIZES, STEPS, TOTAL_TOKENS, changed, family, run_of, with_values, write_csv
from tests.support.figures import errorbar_ends, lines_of, panel_of

RUNS = [run_of(size) for size in SIZES[:4]]
RUN, SMALLER = RUNS[3], RUNS[:3]
NOW = 93_000 * 2e6


@pytest.fixture(scope="module")
def whole():
    return family(sizes=SIZES[:4], steps=STEPS[1::2])


@pytest.fixture(scope="module")
def table(whole):
    return whole.until(RUN, NOW)


@pytest.fixture(scope="module")
def found(table) -> Predictions:
    return curves.predict(table)


def test_predictions_are_those_of_the_method_and_of_the_command(table, found, tmp_path: Path, capsys):
    assert list(found) == predict_finals(table, RUN)
    output = tmp_path / "predicted.json"
    assert main(["predict", str(write_csv(table, tmp_path / "scores.csv")), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{found!r}\n"
    rows = json.loads(output.read_text())
    assert found.to_pandas().to_dict("records") == rows


def test_the_figure_has_the_curve_so_far_the_prediction_and_the_references(table, found):
    figure = found.plot()
    assert isinstance(figure, Figure) and len(figure.axes) == len(LAWS)
    for one in found:
        panel = panel_of(figure, f"{RUN}\n{one.series}")
        drawn = lines_of(panel)
        for name in RUNS:
            curve = table.get(name, one.series)
            assert any(np.array_equal(line, np.stack([curve.tokens_C, curve.value_C])) for line in drawn), name
        assert errorbar_ends(panel) == [(one.tokens, pytest.approx(one.low), pytest.approx(one.high))]
        assert any(np.array_equal(line, [[one.tokens], [one.value]]) for line in drawn)
        assert panel.get_xscale() == "log" and panel.get_xlabel() == "tokens (log)"
        assert panel.get_ylabel().startswith(one.series.metric)


def test_what_came_is_drawn_where_the_table_has_it(whole):
    found = curves.predict(whole, run=RUN, seen=0.4, metric="ce_loss")
    (one,) = found
    truth = whole.get(RUN, one.series).value_C[-1]
    assert found.rows()[0]["came"] == truth
    assert any(np.array_equal(line, [[TOTAL_TOKENS], [truth]]) for line in lines_of(found.plot().axes[0]))


def test_an_unseen_task_is_drawn_as_a_curve_with_its_band(whole):
    found = curves.predict(whole, run=RUN, unseen="alpha")
    (one,) = found
    (panel,) = found.plot().axes
    band = panel.collections[0].get_paths()[0].vertices
    for ends in (one.low_Q, one.high_Q):
        for point in zip(one.tokens_Q, ends, strict=True):
            assert np.isclose(band, point).all(axis=1).any()
    assert any(np.array_equal(line, np.stack([one.tokens_Q, one.value_Q])) for line in lines_of(panel))


def test_refused_scores_are_rows_with_the_reason_and_stand_below_the_figure(whole):
    flat = changed(whole.until(RUN, NOW), lambda c: with_values(c, np.full(len(c), 0.25)) if c.task == "alpha" else c)
    found = curves.predict(flat, run=RUN, metric="acc")
    refused = found.to_pandas().set_index("task").refused
    assert "at chance" in refused["alpha"] and refused[["beta", "gamma", "delta"]].isna().all()
    assert "at chance" in repr(found) and "at chance" in found._repr_html_()
    figure = found.plot()
    assert len(figure.axes) == 3 and "at chance" in figure.get_supxlabel()


def test_more_panels_than_the_limit_are_left_out_and_that_is_said(found):
    figure = found.plot(limit=2)
    assert len(figure.axes) == 2 and f"2 of {len(LAWS)} are shown." in figure.get_supxlabel()


def test_named_references_are_learnt_from_and_drawn_alone(table):
    found = curves.predict(table, references=SMALLER[1:], metric=["acc"])
    wanted = [law.series for law in LAWS if law.metric == "acc"]
    assert list(found) == predict_finals(table, RUN, series=wanted, references=SMALLER[1:])
    first = table.get(SMALLER[0], found[0].series)
    drawn = lines_of(found.plot().axes[0])
    assert not any(np.array_equal(line[1], first.value_C) for line in drawn)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"run": "made-3000"}, "Did you mean made-3000M"),
        ({"metric": "ac"}, "Did you mean acc"),
        ({"unseen": "alpah"}, "Did you mean alpha"),
        ({"references": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_right_name(table, asked, message):
    with pytest.raises(ProbeError, match=message):
        curves.predict(table, **asked)
