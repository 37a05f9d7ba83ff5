"""The advice in an error works: whoever follows it does not get the same advice again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probes.__main__ import main
from tests.support.synthetic_run import write_synthetic_run

TOKENS_PER_STEP = 4_194_304


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of an old lm-eval of one run, which rises above chance on two tasks."""
    for number in range(12):
        step = 1500 + 5000 * number
        rise = 0.3 * (1 - (number + 1) ** -0.7)
        scores = {task: {"acc": start + rise, "acc_stderr": 0.01} for task, start in (("piqa", 0.5), ("sciq", 0.3))}
        path = tmp_path / "evals" / "zero-shot" / f"mine-1.4b-0shot-global_step{step}_eval_results_12-29-2022.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"results": scores, "config": {"model": "neox", "num_fewshot": 0}}))
    return path.parent


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 1
    return capsys.readouterr().err


def test_a_folder_of_old_results_is_predicted_by_following_what_the_errors_say(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(folder)]
    assert "--tokens-per-step N" in failed(words, capsys)
    words += ["--tokens-per-step", str(TOKENS_PER_STEP)]
    error = failed(words, capsys)
    assert "--tokens-per-step" not in error and "planned end." not in error
    assert "How long the runs are to be is not known: the latest checkpoint of mine-1.4b is at 237B tokens" in error
    assert "--at-tokens N" in error and "--seen 0.3" in error and "total_tokens" in error
    output = tmp_path / "predicted.json"
    assert main([*words, "--at-tokens", "3e11", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    assert {row["task"] for row in rows} == {"piqa", "sciq"}
    assert all(row["refused"] is None and row["at_tokens"] == 3e11 for row in rows)
    (tmp_path / "runs.csv").write_text("run,total_tokens\nmine-1.4b,3e11\n")
    assert main([*words, "--runs", str(tmp_path / "runs.csv")]) == 0
    assert main([*words, "--seen", "0.5"]) == 0


def test_a_position_that_the_runs_have_passed_is_said_to_be_passed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(folder), "--tokens-per-step", str(TOKENS_PER_STEP), "--at-tokens", "1e9"]
    error = failed(words, capsys)
    assert "No run of the table ends before --at-tokens 1e+09" in error and "Give a later position" in error


def test_an_original_in_a_folder_is_read_with_the_tokens_of_a_step_that_were_given(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text(
        "run,tokens,task,metric,value,stderr,shots\n"
        + "".join(f"m,{(1500 + 5000 * step) * TOKENS_PER_STEP},piqa,acc,0.6,0.01,0\n" for step in range(12))
    )
    words = ["compare", str(mine), "--original", str(folder)]
    assert "--tokens-per-step N" in failed(words, capsys)
    assert main([*words, "--tokens-per-step", str(TOKENS_PER_STEP)]) == 0
    assert "m beside mine-1.4b at equal tokens" in capsys.readouterr().out


def test_a_folder_of_runs_names_paths_that_can_be_given_and_an_empty_pattern_is_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic_run(tmp_path / "runs" / "first", steps=20)
    (tmp_path / "runs" / "notes.txt").write_text("")
    error = failed(["trust", str(tmp_path / "runs")], capsys)
    assert f"Give them, not the folder: {tmp_path}/runs/first." in error
    assert main(["trust", str(tmp_path / "runs" / "first")]) == 0
    assert "is a pattern that matches nothing here" in failed(["trust", str(tmp_path / "none" / "*")], capsys)


def test_a_file_of_runs_without_the_run_is_asked_for_its_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text("run,tokens_per_step\nother,2e6\n")
    words = ["predict", str(folder), "--at-tokens", "3e11", "--runs", str(runs)]
    assert "a line mine-1.4b with tokens_per_step in the file of --runs" in failed(words, capsys)
    runs.write_text(f"run,tokens_per_step\nmine-1.4b,{TOKENS_PER_STEP}\n")
    assert main(words) == 0
