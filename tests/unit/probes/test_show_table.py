import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from pretrain.errors import ProbeError
from probes.commands.references import add_references_argument
from probes.commands.show_table import (
    add_table_arguments,
    print_table,
    render_table,
    series_name,
    share,
    table_of,
    write_rows,
)

ROWS = [
    {"run": "pythia-1.4b", "tokens": 299_892_736_000.0, "value": 0.61614, "sure": True, "why": None},
    {"run": "a", "tokens": 2_097_152.0, "value": 0.0125, "sure": False, "flops": np.float64(2.2e21)},
    {"run": "nothing", "tokens": math.nan, "value": float("-inf"), "tasks": ["piqa", "sciq"]},
]


def test_columns_line_up_and_numbers_stand_to_the_right() -> None:
    lines = render_table(ROWS).splitlines()
    assert lines == [
        "run          tokens   value  sure  why    flops  tasks",
        "-----------  ------  ------  ----  ---  -------  ----------",
        "pythia-1.4b    300B  0.6161  yes   –          –  –",
        "a             2.10M  0.0125  no    –    2.2e+21  –",
        "nothing           –       –  –     –          –  piqa, sciq",
    ]


def test_only_the_columns_wanted_are_shown_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(ROWS[:1], columns=["value", "run", "absent"])
    assert capsys.readouterr().out.splitlines()[2] == "0.6161  pythia-1.4b  –"


def test_numbers_of_a_column_share_their_decimals() -> None:
    assert render_table([{"x": 1234.5678}, {"x": 80.0}]).splitlines()[2:] == ["1235", "  80"]
    assert render_table([{"x": 12.3456}, {"x": 0.25}]).splitlines()[2:] == ["12.35", " 0.25"]
    assert render_table([{"p": 0.5}, {"p": 3.2e-9}]).splitlines()[2:] == [" 0.5000", "3.2e-09"]
    assert render_table([{"step": 143000}, {"step": np.int64(512)}]).splitlines()[2:] == ["143000", "   512"]


def test_text_stays_on_its_line_and_no_rows_are_said() -> None:
    assert "two lines" in render_table([{"why": "two\nlines"}])
    assert render_table([]) == "No rows."


def test_a_table_has_no_colours_that_a_pipe_would_keep() -> None:
    assert "\x1b" not in render_table(ROWS)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_rows_are_written_whole_and_unrounded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"rows.{suffix}"
    write_rows(ROWS, path)
    if suffix == "csv":
        found = list(csv.DictReader(path.open()))
        assert found[0]["value"] == "0.61614" and found[2]["tokens"] == "" and found[2]["tasks"] == '["piqa", "sciq"]'
    else:
        found = json.loads(path.read_text()) if suffix == "json" else pyarrow.parquet.read_table(path).to_pylist()
        assert found[0]["value"] == 0.61614 and found[1]["flops"] == 2.2e21
        assert found[2]["tokens"] is None and found[2]["tasks"] == ["piqa", "sciq"]
    assert list(found[0]) == ["run", "tokens", "value", "sure", "why", "flops", "tasks"]
    assert [path.name for path in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def test_a_column_of_several_kinds_is_written_as_text(tmp_path: Path) -> None:
    write_rows([{"x": 1}, {"x": "much"}], tmp_path / "rows.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist() == [{"x": "1"}, {"x": "much"}]


def test_another_suffix_is_refused_with_the_three_there_are(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"\.xlsx.*\.csv, \.parquet or \.json"):
        write_rows(ROWS, tmp_path / "rows.xlsx")
    with pytest.raises(ProbeError, match="without suffix"):
        write_rows(ROWS, tmp_path / "rows")


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="cannot be written"):
        write_rows(ROWS, tmp_path / "file" / "rows.csv")


def test_arguments_name_a_table(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("run,step,task,metric,value\nx,2,piqa,acc,0.5\n")
    (tmp_path / "runs.csv").write_text("run,parameters,tokens_per_step\nx,1e9,50\n")
    parser = argparse.ArgumentParser()
    add_table_arguments(parser)
    words = [str(tmp_path / "scores.csv"), "--tokens-per-step", "100"]
    assert table_of(parser.parse_args(words)).curves[0].tokens_C.tolist() == [200.0]
    table = table_of(parser.parse_args([*words, "--runs", str(tmp_path / "runs.csv")]))
    assert table.curves[0].tokens_C.tolist() == [100.0] and table.runs["x"].parameters == 1e9
    assert parser.parse_args([*words, "--output", "x.csv"]).output == Path("x.csv")


@pytest.mark.parametrize("text", ["0", "1", "30", "-0.2"])
def test_a_share_is_above_0_and_below_1(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not a share above 0 and below 1"):
        share(text)


def test_a_series_is_named_with_its_examples_where_it_is_there_at_several_numbers() -> None:
    rows = [{"task": "a", "metric": "acc", "shots": 0}, {"task": "a", "metric": "acc", "shots": 5}]
    rows.append({"task": "b", "metric": "acc", "shots": 5})
    assert [series_name(row, rows) for row in rows] == ["a (acc, 0-shot)", "a (acc, 5-shot)", "b (acc)"]


def test_a_line_of_runs_counts_as_used_where_the_references_have_its_run(tmp_path, capsys):
    for name in ("mine", "other"):
        (tmp_path / f"{name}.csv").write_text(f"run,tokens,task,metric,value\n{name},2,piqa,acc,0.5\n")
    (tmp_path / "runs.csv").write_text("run,parameters\nmine,1e9\nother,5e8\nothr,6e8\n")
    parser = argparse.ArgumentParser()
    add_table_arguments(parser)
    add_references_argument(parser, purpose="others")
    words = [str(tmp_path / "mine.csv"), "--runs", str(tmp_path / "runs.csv")]
    table_of(parser.parse_args([*words, "--references", str(tmp_path / "other.csv")]))
    assert "1 line names no run that is read here and is not used: othr.\n" in capsys.readouterr().out
    table_of(parser.parse_args(words))
    assert "2 lines name no run that is read here and are not used: other, othr.\n" in capsys.readouterr().out
