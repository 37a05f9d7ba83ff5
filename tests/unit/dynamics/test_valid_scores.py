"""Impossible, missing and repeated scores of a table: converted and said, or refused with file, row and reason."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.table import CurveTable, Series
from probes.dynamics.tidy import read_tidy
from probes.dynamics.valid_scores import refuse_impossible_shares

HEAD = "run,step,tokens,task,metric,value,stderr\n"
PIQA, SCIQ, LOSS = Series("piqa", "acc"), Series("sciq", "acc"), Series("train", "loss")


def written(path: Path, *rows: str) -> Path:
    path = path / "scores.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return path


def rows_of(*, scale: float = 1.0, error_scale: float = 1.0, run: str = "mine", changed_from: int = 99) -> list[str]:
    """Two tasks and a loss at six checkpoints; from one of them on the accuracies are in percent."""
    found = []
    for step in range(1, 7):
        factor = 100.0 if step >= changed_from else scale
        for task, start in (("piqa", 0.55), ("sciq", 0.3)):
            value, error = (start + 0.03 * step) * factor, 0.01 * error_scale
            found.append(f"{run},{step},{step}000,{task},acc,{value},{error}")
        found.append(f"{run},{step},{step}000,train,loss,{5 - 0.3 * step},")
    return found


def test_percentages_are_read_as_shares_values_and_errors_and_it_is_said(tmp_path: Path) -> None:
    shares = read_tidy(written(tmp_path, *rows_of()))
    percent = read_tidy(written(tmp_path, *rows_of(scale=100.0, error_scale=100.0)))
    assert shares.notes == ()
    (note,) = percent.notes
    assert "scores.csv: accuracies of mine are in percent; values and standard errors are read as shares." in note
    for one in (PIQA, SCIQ, LOSS):
        left, right = shares.get("mine", one), percent.get("mine", one)
        assert left is not None and right is not None
        np.testing.assert_allclose(left.value_C, right.value_C, rtol=1e-12)
        np.testing.assert_allclose(left.stderr_C, right.stderr_C, rtol=1e-12)


def test_standard_errors_that_are_shares_already_stay(tmp_path: Path) -> None:
    table = read_tidy(written(tmp_path, *rows_of(scale=100.0)))
    curve = table.get("mine", PIQA)
    assert curve is not None and curve.stderr_C.tolist() == [0.01] * 6


def test_one_run_in_percent_beside_one_in_shares_is_converted_alone(tmp_path: Path) -> None:
    table = read_tidy(written(tmp_path, *rows_of(), *rows_of(scale=100.0, error_scale=100.0, run="other")))
    for run in ("mine", "other"):
        curve = table.get(run, PIQA)
        assert curve is not None
        np.testing.assert_allclose(curve.value_C, 0.55 + 0.03 * np.arange(1, 7))
    assert "accuracies of other are in percent" in table.notes[0]


def test_percent_signs_are_understood(tmp_path: Path) -> None:
    table = read_tidy(written(tmp_path, "x,1,10,piqa,acc,45.5%,", "x,2,20,piqa,acc,0.9%,", "x,2,20,qa,f1,50%,"))
    assert [curve.value_C.tolist() for curve in table] == [[0.455, 0.009000000000000001], [0.5]]


def test_a_change_to_percent_on_the_way_is_refused_with_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(
        ProbeError, match=r"line 11: value=67 of piqa \(acc\) of mine follows 0.64 .*\(line 8\).*percent"
    ):
        read_tidy(written(tmp_path, *rows_of(changed_from=4)))


def test_one_task_in_percent_among_shares_is_refused_with_both_rows(tmp_path: Path) -> None:
    rows = [row.replace("sciq,acc,0.", "sciq,acc,") for row in rows_of()]
    with pytest.raises(ProbeError, match=r"piqa \(acc\) of mine is a share, but sciq \(acc\) is .*in percent"):
        read_tidy(written(tmp_path, *rows))


def test_a_small_percentage_does_not_make_a_table_of_percentages_mixed(tmp_path: Path) -> None:
    rows = [f"x,{step},{step}0,lambada_openai,acc,{value}," for step, value in enumerate((0.02, 0.9, 3.0, 31.0), 1)]
    rows += [f"x,{step},{step}0,piqa,acc,{50 + step}," for step in range(1, 5)]
    curve = read_tidy(written(tmp_path, *rows)).get("x", Series("lambada_openai", "acc"))
    assert curve is not None
    np.testing.assert_allclose(curve.value_C, [0.0002, 0.009, 0.03, 0.31])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,1,10,piqa,acc,inf,", r"line 3: value=inf of piqa \(acc\) of x is infinite"),
        ("x,1,10,train,loss,-inf,", r"line 3: value=-inf of train \(loss\) of x is infinite"),
        ("x,1,10,piqa,acc,0.5,inf", r"line 3: stderr=inf of piqa"),
        ("x,1,10,piqa,acc,0.5,-0.1", r"line 3: stderr=-0.1 of piqa .* is negative"),
        ("x,1,10,piqa,acc,-0.5,", r"line 3: value=-0.5 of piqa .* is negative; a share of right answers"),
        ("x,1,10,train,loss,-2,", r"line 3: value=-2 of train .* is negative; losses"),
        ("x,1,10,piqa,acc,150,", r"line 3: value=150 of piqa .* is above 100 %"),
        ("x,1,-10,piqa,acc,0.5,", r"line 3: tokens=-10 is negative"),
        ("x,-5,10,piqa,acc,0.5,", r"line 3: step=-5 is negative"),
        ("x,1,inf,piqa,acc,0.5,", r"line 3: tokens=inf is infinite"),
        ("x,100,10,piqa,acc,0.5,", r"line 3: tokens=10 are fewer than step=100.*tokens_B"),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(tmp_path: Path, row: str, message: str) -> None:
    path = written(tmp_path, "y,1,10,sciq,exact_match,0.5,", row)
    with pytest.raises(ProbeError, match=rf"scores.csv, {message}"):
        read_tidy(path)


def test_a_row_behind_blank_lines_and_quoted_line_ends_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text('run,tokens,task,metric,value\n\n"a\nb",1,piqa,acc,0.5\n\nx,1,piqa,acc,-1\n')
    with pytest.raises(ProbeError, match="scores.csv, line 6: value=-1 of piqa"):
        read_tidy(path)


def test_margins_and_rescaled_scores_may_be_negative(tmp_path: Path) -> None:
    table = read_tidy(written(tmp_path, "x,1,10,piqa,margin,-0.5,", "x,1,10,piqa,acc_rescaled,-0.02,"))
    assert [curve.value_C.tolist() for curve in table] == [[-0.5], [-0.02]]


def test_missing_values_are_left_out_with_their_number(tmp_path: Path) -> None:
    table = read_tidy(written(tmp_path, "x,1,10,piqa,acc,nan,", "x,2,20,piqa,acc,,0.1", "x,3,30,piqa,acc,0.5,NA"))
    assert [curve.value_C.tolist() for curve in table] == [[0.5]] and math.isnan(table.curves[0].stderr_C[0])
    said = "2 of 3 rows have no value and are left out (the first is piqa (acc) of x, line 2)."
    assert table.notes == (f"{tmp_path}/scores.csv: {said}",)


def test_two_values_for_one_place_are_refused_with_both_rows_and_equal_ones_count_once(tmp_path: Path) -> None:
    again = "x,1,10,piqa,acc,0.5,0.01"
    table = read_tidy(written(tmp_path, again, "x,2,20,piqa,acc,0.6,", again))
    assert [curve.value_C.tolist() for curve in table] == [[0.5, 0.6]]
    assert table.notes == (f"{tmp_path}/scores.csv: 1 row(s) repeat others and count once.",)
    with pytest.raises(ProbeError, match=r"line 2: value=0.5 of piqa \(acc\) of x, but line 4 says 0.55 at the same"):
        read_tidy(written(tmp_path, again, "x,2,20,piqa,acc,0.6,", "x,1,10,piqa,acc,0.55,"))


def test_what_belongs_to_a_whole_run_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    text = "run,tokens,task,metric,value,total_tokens\nx,1,piqa,acc,.5,100\ny,1,piqa,acc,.5,7\nx,2,piqa,acc,.5,{}\n"
    path.write_text(text.format(""))
    assert read_tidy(path).runs["x"].total_tokens == 100.0
    path.write_text(text.format(200))
    with pytest.raises(ProbeError, match="total_tokens of x is 100 in line 2 and 200 in line 4"):
        read_tidy(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: a table of scores has a line of column names"),
        ("\n\n", "is empty"),
        (HEAD, "has no rows, only the columns run, step, tokens"),
        (HEAD + "x,1,10,piqa,acc,,\n", "has no scores: in all 1 rows the value is missing"),
        (HEAD + "x,1,10,mean,acc,0.5,\n", "all 1 rows are means of domains"),
    ],
)
def test_a_table_without_scores_is_said_to_be_without(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(ProbeError, match=message):
        read_tidy(path)


def test_columns_in_each_other_s_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="column task holds acc, acc_norm, which are metrics.*other way round"):
        read_tidy(written(tmp_path, "x,1,10,acc,piqa,0.5,", "x,1,10,acc_norm,piqa,0.5,"))


def test_whatever_a_score_was_read_from_an_accuracy_above_one_is_refused(tmp_path: Path) -> None:
    table = read_tidy(written(tmp_path, "x,7,10,piqa,acc,0.5,"))
    assert refuse_impossible_shares(table) is table
    table.curves[0].value_C[0] = 1.5
    with pytest.raises(ProbeError, match=r"piqa \(acc\) of x is 1.5 at step 7; a share"):
        refuse_impossible_shares(CurveTable(table.runs.values(), table.curves))
