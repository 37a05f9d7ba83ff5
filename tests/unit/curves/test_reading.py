from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from probes import curves
from probes.dynamics.load import load_curves, read_runs_file
from probes.dynamics.table import CurveTable, RunFacts
from tests.support.curve_family import family

_ARRAYS = ("step_C", "tokens_C", "value_C", "stderr_C")


def same(left: CurveTable, right: CurveTable) -> None:
    assert left.runs == right.runs
    assert len(left) == len(right)
    for other in right:
        one = left.get(other.run, other.series)
        assert one is not None, other.series
        for name in _ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.run, one.domain, one.plan) == (other.run, other.domain, other.plan)
        np.testing.assert_equal(one.chance, other.chance)


@pytest.fixture(scope="module")
def table() -> CurveTable:
    return family(sizes=(4e8, 8e8))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_data_frame_that_is_written_reads_back_as_the_same_table(table, tmp_path: Path, ending):
    frame, path = table.to_pandas(), tmp_path / f"scores.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    same(curves.load(path), table)
    pandas.testing.assert_frame_equal(curves.load(path).to_pandas(), frame)


def test_a_data_frame_has_one_row_a_score_with_the_values_of_the_curves(table):
    frame = table.to_pandas()
    assert len(frame) == sum(len(curve) for curve in table)
    for curve in table:
        rows = frame[(frame.run == curve.run) & (frame.task == curve.task) & (frame.metric == curve.metric)]
        for column, name in (("step", "step_C"), ("tokens", "tokens_C"), ("value", "value_C"), ("stderr", "stderr_C")):
            np.testing.assert_array_equal(rows[column], getattr(curve, name))
        assert set(rows.parameters) == {table.runs[curve.run].parameters}
        np.testing.assert_allclose(rows.flops, 6 * table.runs[curve.run].parameters * curve.tokens_C, rtol=1e-15)
        if np.isfinite(curve.chance):
            np.testing.assert_allclose(rows.rescaled, (curve.value_C - curve.chance) / (1 - curve.chance))
        else:
            assert rows.rescaled.isna().all()


def test_published_curves_become_a_data_frame_and_back(tmp_path: Path):
    table = curves.load("published:pythia").select(runs=["pythia-1.4b"])
    table.to_pandas().to_parquet(tmp_path / "pythia.parquet")
    same(curves.load(tmp_path / "pythia.parquet"), table)


def test_a_table_of_nothing_has_the_columns_of_any_other(table):
    assert list(CurveTable([], []).to_pandas().columns) == list(table.to_pandas().columns)


def test_load_reads_what_the_commands_read_with_their_options(tmp_path: Path):
    (tmp_path / "scores.csv").write_text("run,step,task,metric,value\nx,2,piqa,acc,0.5\ny,2,piqa,acc,0.6\n")
    (tmp_path / "runs.csv").write_text("run,parameters,tokens_per_step\nx,1e9,50\n")
    told = read_runs_file(tmp_path / "runs.csv")
    expected = load_curves(
        [tmp_path / "scores.csv"], tokens_per_step=7, facts=told.facts, tokens_per_step_of=told.tokens_per_step
    )
    found = curves.load(tmp_path / "scores.csv", tokens_per_step=7, runs=tmp_path / "runs.csv")
    same(found, expected)
    assert {curve.run: curve.tokens_C.tolist() for curve in found} == {"x": [100.0], "y": [14.0]}


def test_facts_of_runs_can_be_given_as_they_are(tmp_path: Path):
    (tmp_path / "scores.csv").write_text("run,tokens,task,metric,value\nx,2,piqa,acc,0.5\n")
    found = curves.load(tmp_path / "scores.csv", runs={"x": RunFacts(name="x", parameters=2e9, total_tokens=1e12)})
    assert (found.runs["x"].parameters, found.runs["x"].total_tokens) == (2e9, 1e12)
    assert repr(found) == "CurveTable of 1 run(s), 1 curves, 1 scores: x"


def test_lines_of_a_file_of_runs_that_are_of_no_run_are_said_with_the_nearest_name(tmp_path: Path):
    (tmp_path / "scores.csv").write_text(
        "run,tokens,task,metric,value\nmine-1.4b,2,piqa,acc,0.5\nmine-1.5b,2,piqa,acc,0.6\n"
    )
    told = tmp_path / "runs.csv"
    told.write_text("run,parameters\nmine-1.5b,1.5e9\nmine_1.4b,1.4e9\nx,2e9\n")
    found = curves.load(tmp_path / "scores.csv", runs=told)
    assert found.notes == (
        f"--runs {told}: 2 lines name no run that is read here and are not used: "
        "mine_1.4b (did you mean mine-1.4b?), x.",
    )
    told.write_text("run,parameters\nmine-1.5b,1.5e9\nmine-1.4b,1.4e9\n")
    assert curves.load(tmp_path / "scores.csv", runs=told).notes == ()
    (note,) = curves.load(tmp_path / "scores.csv", runs={"mine": RunFacts(name="mine", parameters=2e9)}).notes
    assert note.startswith(
        "runs: 1 line names no run that is read here and is not used: mine (did you mean mine-1.4b?)"
    )
