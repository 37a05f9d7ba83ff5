from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.__main__ import main
from probes.dynamics.load import load_curves

STEPS = range(1000, 21_000, 1000)


def write(path: Path, tasks: dict[str, np.ndarray]) -> Path:
    rows = [
        f"run-1b,{step},{step * 2e6},80000000000,{task},acc,{value},0.01"
        for task, values in tasks.items()
        for step, value in zip(STEPS, values, strict=True)
    ]
    path.write_text("run,step,tokens,total_tokens,task,metric,value,stderr\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.005, (3, len(STEPS)))
    rising = 0.7 - 0.3 * (np.array(STEPS) / 1000.0) ** -0.5
    return write(
        tmp_path / "table.csv",
        {"mathqa": 0.2 + noise[0], "gpqa": 0.25 + noise[1], "mine_easy": 0.25 + noise[2], "mine_hard": rising},
    )


def test_tasks_at_guessing_are_refused_whether_guessing_is_known_or_not(table, capsys):
    assert main(["predict", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "Note: The score of guessing is not known for mine_easy, mine_hard: say it in a column chance or" in printed
    refused = [line for line in printed.splitlines() if line.startswith("refused")]
    assert any("at chance" in line and "mathqa (acc)" in line and "gpqa (acc)" in line for line in refused)
    assert any("the score of guessing is not known" in line and "mine_easy (acc)" in line for line in refused)
    assert not any("mine_hard" in line for line in refused)


def test_the_score_of_guessing_can_be_said_of_one_task_or_of_all_that_begin_so(table):
    told = load_curves([table], chance={"mine": 0.25, "mine_hard": 0.3, "gpqa": 0.5})
    assert {curve.task: curve.chance for curve in told} == {
        "mathqa": 0.2,
        "gpqa": 0.5,
        "mine_easy": 0.25,
        "mine_hard": 0.3,
    }


def test_nothing_is_noted_once_it_is_said(table, capsys):
    assert main(["trust", str(table), "--chance", "mine=0.25"]) == 0
    assert "not known" not in capsys.readouterr().out
    assert main(["state", str(table), "--chance", "mine_easy=0.25", "--chance", "mine_hard=0.25"]) == 0
    assert "not known" not in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code"), [(["--chance", "mathqas=0.2"], 1), (["--chance", "his=0.2"], 1)])
def test_a_task_that_is_not_there_is_refused_with_the_nearest(table, capsys, words, code):
    assert main(["trust", str(table), *words]) == code
    printed = capsys.readouterr().err
    assert f"{words[0]} {words[1]}: no task of the table has this name or begins with it." in printed
    assert "Tasks with accuracies: gpqa, mathqa, mine_easy, mine_hard." in printed


@pytest.mark.parametrize(
    "word", ["mathqa", "mathqa=", "=0.2", "mathqa=many", "mathqa=1.0", "mathqa=-0.1", "mathqa=nan"]
)
def test_what_is_no_score_of_guessing_is_refused(table, capsys, word):
    with pytest.raises(SystemExit, match="2"):
        main(["trust", str(table), "--chance", word])
    assert "is no task with its score of guessing, from 0 to below 1: mine=0.25" in capsys.readouterr().err


def column(path: Path, name: str, values: list[str], metric: str = "acc") -> Path:
    rows = [f"run-1b,1000,2000000000,mine_{number},{metric},0.4,{value}" for number, value in enumerate(values)]
    path.write_text(f"run,step,tokens,task,metric,value,{name}\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("name", "values"), [("chance", ["0.2", "0"]), ("choices", ["5", ""]), ("num_choices", ["5", ""])]
)
def test_a_column_says_the_score_of_guessing_or_the_number_of_choices(tmp_path, name, values):
    chances = [curve.chance for curve in load_curves([column(tmp_path / "t.csv", name, values)])]
    assert chances[0] == 0.2 and (chances[1] == 0.0 or np.isnan(chances[1]))


def test_choices_say_nothing_of_a_loss(tmp_path):
    (curve, *_) = load_curves([column(tmp_path / "t.csv", "choices", ["4"], metric="bits_per_byte")])
    assert np.isnan(curve.chance)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("chance", "25", "row 3: chance=25 is no score of guessing, which is from 0 to below 1. Write 0.25 for 25 %."),
        ("chance", "-0.1", "chance=-0.1 is no score of guessing"),
        ("choices", "1", "choices=1 is no number of choices: 2 or more."),
        ("choices", "3.5", "choices=3.5 is no number of choices"),
        ("choices", "inf", "choices=inf is no number of choices"),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(tmp_path, name, value, message):
    good = "0.25" if name == "chance" else "4"
    with pytest.raises(ProbeError) as refused:
        load_curves([column(tmp_path / "t.csv", name, [good, value])])
    assert message in str(refused.value).replace("line 3", "row 3")
