from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes import curves
from probes.__main__ import main
from probes.curves.fits import Fits
from probes.dynamics.fit_table import WantedFits, fit_rows
from probes.dynamics.table import CurveTable
from tests.support.curve_family import LOSS, SIZES, STEPS, TOKENS_PER_STEP, family, write_csv
from tests.support.figures import errorbar_ends, lines_of, panel_of

AT = {"parameters": 1e10, "tokens": 4e11}


@pytest.fixture(scope="module")
def table():
    """Sizes at three lengths each, so that a law of size and tokens has what it needs."""
    parts = []
    for length, last in enumerate((40_000, 80_000, 150_000)):
        steps = [step for step in STEPS if step < last] + [last]
        part = family((LOSS,), sizes=SIZES, steps=steps, seed=length)
        facts = [replace(one, name=f"{name}-{last}") for name, one in part.runs.items()]
        parts.append((facts, [replace(curve, run=f"{curve.run}-{last}") for curve in part]))
    return CurveTable([one for facts, _ in parts for one in facts], [one for _, own in parts for one in own])


@pytest.fixture(scope="module")
def found(table) -> Fits:
    return curves.fit(table, law="ladder", draws=10, **AT)


def test_fits_are_those_of_the_method_and_of_the_command(table, found, tmp_path: Path, capsys):
    assert found.rows() == fit_rows(table, WantedFits(law="ladder", draws=10, **AT))
    output = tmp_path / "fits.json"
    words = ["fit", str(write_csv(table, tmp_path / "scores.csv")), "--law", "ladder", "--draws", "10"]
    assert main([*words, "--parameters", "1e10", "--tokens", "4e11", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{found!r}\n"
    frame = found.to_pandas()
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == json.loads(output.read_text())


def test_the_figure_has_the_runs_the_law_with_its_interval_and_the_prediction(table, found):
    (one,) = found
    panel = panel_of(found.plot(), "held_out (ce_loss, 0-shot)\nladder")
    drawn = lines_of(panel)
    for name, facts in table.runs.items():
        curve = table.get(name, LOSS.series)
        flops, last = 6.0 * facts.parameters * curve.tokens_C[-1], curve.value_C[-5:].mean()
        assert np.isclose(drawn[0], [[flops], [last]], rtol=1e-12).all(axis=0).any(), name
        row = one.row
        law = np.exp(row["log_A"]) / facts.parameters ** row["alpha"] + row["E"]
        law += np.exp(row["log_B"]) / curve.tokens_C[-1] ** row["beta"]
        assert np.isclose(drawn[1], [[flops], [law]], rtol=1e-9).all(axis=0).any(), name
    ((place, low, high),) = errorbar_ends(panel)
    assert place == pytest.approx(6.0 * AT["parameters"] * AT["tokens"])
    assert (low, high) == (pytest.approx(one.row["low_80%"]), pytest.approx(one.row["high_80%"]))
    assert panel.get_xlabel() == "training FLOPs (log)" and panel.get_xscale() == "log"


def test_a_refused_fit_is_a_row_with_the_reason_and_stands_below_the_figure(table):
    found = curves.fit(table, law="ladder", draws=0, parameters=1e15, tokens=4e11)
    (row,) = found.to_pandas().to_dict("records")
    assert "times outside of the fitted range" in row["refused"]
    figure = found.plot()
    assert not figure.axes[0].lines and "times outside of the fitted range" in figure.get_supxlabel()


def test_one_runs_own_future_is_drawn_over_tokens(table):
    run = next(name for name in table.runs if name.endswith("150000"))
    found = curves.fit(table.select(runs=[run]), draws=5)
    (panel,) = found.plot().axes
    assert panel.get_xlabel() == "tokens (log)"
    assert lines_of(panel)[0][0].max() == STEPS[-1] * TOKENS_PER_STEP


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"law": "laddr"}, "--law laddr is unknown. Allowed: auto, ladder"),
        ({"link": "line"}, "--link line is unknown"),
        ({"level": 1.5}, "no share of outcomes"),
        ({"parameters": 1e9}, "without --tokens"),
        ({"without": "*"}, "leaves no run"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(table, asked, message):
    with pytest.raises(ProbeError, match=message):
        curves.fit(table, **asked)
