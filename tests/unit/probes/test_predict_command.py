from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from pretrain.track.legible import legible_count
from probes.__main__ import main
from probes.dynamics.load import load_curves
from probes.dynamics.predict import predict_finals
from probes.dynamics.siblings import predict_unseen
from probes.dynamics.table import CurveTable, Series
from tests.support.curve_family import (
    ABILITIES,
    LAWS,
    LOSS,
    SIZES,
    STEPS,
    TOTAL_TOKENS,
    changed,
    family,
    run_of,
    with_values,
    write_csv,
)

RUNS = [run_of(size) for size in SIZES[:4]]
RUN, SMALLER = RUNS[3], RUNS[:3]
NOW = 93_000 * 2e6


@pytest.fixture(scope="module")
def whole():
    return family(sizes=SIZES[:4], steps=STEPS[1::2])


@pytest.fixture(scope="module")
def path(whole, tmp_path_factory) -> Path:
    return write_csv(whole.until(RUN, NOW), tmp_path_factory.mktemp("predict") / "scores.csv")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_runs_in_progress_are_predicted_with_the_numbers_of_the_function(path, tmp_path, capsys):
    output = tmp_path / "predicted.json"
    assert main(["predict", str(path), "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    expected = predict_finals(load_curves([path]), RUN)
    assert [(row["run"], row["task"], row["metric"]) for row in rows] == [
        (RUN, one.series.task, one.series.metric) for one in expected
    ]
    for row, one in zip(rows, expected, strict=True):
        assert (row["at_tokens"], row["predicted"]) == (TOTAL_TOKENS, one.value)
        assert (row["low_80%"], row["high_80%"]) == (one.low, one.high)
        assert row["refused"] is None
        assert row["method"] == f"size and tokens, from {', '.join(SMALLER)}; its own past counts 41%"
        assert "came" not in row
    printed = capsys.readouterr().out
    assert printed.count(RUN) == len(LAWS), "finished runs are not predicted"
    assert printed.endswith(f"from size and tokens, from {', '.join(SMALLER)}; its own past counts 41%\n")
    assert f"{rows[0]['predicted']:.3f}" in printed and "low 80%" in printed


def test_seen_shows_what_came_beside_what_was_predicted(whole, tmp_path, capsys):
    everything = write_csv(whole, tmp_path / "whole.csv")
    output = tmp_path / "predicted.csv"
    words = ["predict", str(everything), "--run", RUN, "--seen", "0.62", "--metric", "acc", "--output", str(output)]
    assert main(words) == 0
    rows = rows_of(output)
    assert [row["task"] for row in rows] == [law.task for law in ABILITIES]
    now = whole.until(RUN, 0.62 * TOTAL_TOKENS)
    for row in rows:
        one = Series(row["task"], "acc", 0)
        assert float(row["came"]) == whole.get(RUN, one).value_C[-1]
        assert float(row["now"]) == now.get(RUN, one).value_C[-1]
        assert abs(float(row["predicted"]) - float(row["came"])) < 0.03
    assert "came" in capsys.readouterr().out.splitlines()[0]
    # The very same as of a file that ends there: what came is shown, not looked at.
    cut = tmp_path / "cut.csv"
    assert main(["predict", str(write_csv(now, tmp_path / "now.csv")), "--metric", "acc", "--output", str(cut)]) == 0
    assert [row["predicted"] for row in rows_of(cut)] == [row["predicted"] for row in rows]


def test_seen_on_published_runs_is_the_prediction_of_then(tmp_path, capsys):
    output = tmp_path / "predicted.parquet"
    words = ["predict", "published:pythia", "--run", "pythia-6.9b", "--seen", "0.3", "--metric", "ppl"]
    assert main([*words, "--output", str(output)]) == 0
    rows = pyarrow.parquet.read_table(output).to_pylist()
    assert [(row["task"], row["shots"]) for row in rows] == [("lambada_openai", 0), ("lambada_openai", 5)]
    for row in rows:
        assert row["method"].startswith(
            "size and tokens, from pythia-410m, pythia-1b-bf16, pythia-1.4b, pythia-2.8b; its own past counts "
        )
        assert row["low_80%"] < row["predicted"] < row["now"] and row["came"] < row["now"]
    assert "pythia-2.8b" in capsys.readouterr().out


def test_a_later_position_than_the_end(path, tmp_path):
    output = tmp_path / "predicted.json"
    words = ["predict", str(path), "--run", SMALLER[2], "--at-tokens", "6e11", "--metric", "ce_loss"]
    assert main([*words, "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())
    assert row["at_tokens"] == 6e11 and row["predicted"] < row["now"]
    assert row["predicted"] == pytest.approx(-LOSS.judged(SIZES[2], np.array([6e11]))[0], abs=0.03)


def test_named_references_are_learnt_from_alone(path, tmp_path):
    output = tmp_path / "predicted.json"
    words = ["predict", str(path), "--run", RUN, "--metric", "ce_loss", "--references", SMALLER[2], SMALLER[1]]
    assert main([*words, "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())
    assert row["method"].startswith(f"size and tokens, from {SMALLER[2]}, {SMALLER[1]}; its own past counts ")


def test_refusals_are_printed_once_a_reason_with_the_series(whole, tmp_path, capsys):
    random = np.random.default_rng(0)

    def guess(curve):
        guessed = curve.task in ("alpha", "beta")
        return with_values(curve, 0.25 + 0.004 * random.normal(size=len(curve))) if guessed else curve

    guessed = write_csv(changed(whole, guess).until(RUN, NOW), tmp_path / "scores.csv")
    output = tmp_path / "predicted.csv"
    assert main(["predict", str(guessed), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    reason = "at chance in this run and its references: nothing can be said of it."
    assert f"refused, {RUN}, 2 series: {reason} alpha (acc), beta (acc)\n" in printed
    assert "alpha" not in printed.split("refused")[0]
    refused = {row["task"]: row["refused"] for row in rows_of(output)}
    assert refused == {"alpha": reason, "beta": reason, "gamma": "", "delta": "", "held_out": ""}


def test_an_unseen_task_is_predicted_from_its_siblings_with_the_numbers_of_the_function(whole, tmp_path, capsys):
    lacking = changed(whole, lambda c: None if (c.run, c.task) == (RUN, "delta") else c)
    path, output = write_csv(lacking, tmp_path / "scores.csv"), tmp_path / "predicted.json"
    assert main(["predict", str(path), "--unseen", "delta", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())
    measured = sorted(law.series for law in ABILITIES[:3])
    target = ABILITIES[3].series
    (found,) = predict_unseen(
        load_curves([path]), RUN, [target], measured=measured, loss=LOSS.series, learn_from=list(whole.runs)
    )
    assert (row["run"], row["task"], row["at_tokens"]) == (RUN, "delta", TOTAL_TOKENS)
    assert (row["predicted"], row["low_80%"], row["high_80%"]) == (found.value_Q[-1], found.low_Q[-1], found.high_Q[-1])
    assert row["method"].startswith(
        "the siblings alpha, beta, gamma and the loss held_out (85%) and from the loss alone"
    )
    assert row["predicted"] == pytest.approx(whole.get(RUN, target).value_C[-1], abs=0.03)
    assert (
        "from the siblings alpha, beta, gamma and the loss held_out (85%) and from the loss alone (15%); error on"
        in capsys.readouterr().out
    )


def test_an_unseen_task_of_a_run_that_measured_it_is_predicted_as_if_it_had_not(whole, tmp_path):
    values = []
    for name, change in (("as it is", lambda c: c), ("spoiled", lambda c: with_values(c, c.value_C[::-1]))):
        table = changed(whole, lambda c, f=change: f(c) if (c.run, c.task) == (RUN, "delta") else c)
        path, output = write_csv(table, tmp_path / f"{name}.csv"), tmp_path / f"{name}.json"
        assert main(["predict", str(path), "--unseen", "delta", "--run", RUN, "--output", str(output)]) == 0
        values.append(json.loads(output.read_text()))
    assert values[0] == values[1] and values[0][0]["refused"] is None


def test_an_unseen_task_of_too_few_siblings_is_refused_and_the_exit_is_0(whole, tmp_path, capsys):
    two = whole.select(series=[ABILITIES[0].series, ABILITIES[3].series, LOSS.series])
    path = write_csv(two, tmp_path / "scores.csv")
    assert main(["predict", str(path), "--unseen", "delta", "--run", RUN]) == 0
    assert (
        f"refused, {RUN}, 1 series: 1 sibling(s) measured; at least 2 are needed. delta (acc)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "made-3000"], "--run made-3000: there is no such run. Did you mean made-3000M"),
        (
            ["--references", "made-300M"],
            "made-300M is neither a run in the table nor a path that exists. Did you mean made-3000M",
        ),
        (["--unseen", "alpah"], "--unseen alpah: no run in the table has measured it. Did you mean alpha?"),
        (["--unseen", "delta"], "Every run in the table has measured delta. Name one with --run NAME"),
        (["--metric", "ac"], "--metric ac: no run has it. Did you mean acc? Known: acc, ce_loss."),
        (
            ["--output", "x.xlsx"],
            "--output x.xlsx: the result cannot be written as .xlsx. Name a file that ends in .csv",
        ),
    ],
)
def test_wrong_words_are_refused_with_the_nearest_right_ones(path, capsys, words, message):
    assert main(["predict", str(path), *words]) == 1
    assert message in capsys.readouterr().err


def test_finished_runs_alone_are_refused_with_what_to_do(whole, tmp_path, capsys):
    path = write_csv(whole, tmp_path / "whole.csv")
    assert main(["predict", str(path)]) == 1
    assert "Every run in the table is at its planned end. Name one with --run NAME and how" in capsys.readouterr().err


def test_metrics_without_a_law_are_refused_with_those_that_have_one(whole, tmp_path, capsys):
    odd = changed(whole.until(RUN, NOW), lambda c: replace(c, metric="brier_score"))
    assert main(["predict", str(write_csv(odd, tmp_path / "odd.csv"))]) == 1
    assert "The runs have none of the metrics that can be predicted: acc, acc_norm" in capsys.readouterr().err


def test_what_is_not_there_cannot_be_read(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "nowhere.csv")]) == 1
    assert "nowhere.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["predict"])
    assert stopped.value.code == 2


def test_a_run_past_its_planned_end_is_called_so_with_both_numbers(whole, tmp_path, capsys):
    total = 0.5 * whole.last_tokens(RUN)
    own = whole.select(runs=[RUN])
    path = write_csv(CurveTable([replace(own.runs[RUN], total_tokens=total)], own.curves), tmp_path / "past.csv")
    assert main(["predict", str(path)]) == 1
    error = capsys.readouterr().err
    latest, planned = (legible_count(int(tokens)) for tokens in (2 * total, total))
    assert (
        f"{RUN} is past its planned end: its latest checkpoint is at {latest} tokens, {planned} were planned" in error
    )
    assert "is at its planned end" not in error and "total_tokens" in error and "--at-tokens" in error
    later = str(int(2.5 * total))
    assert main(["predict", str(path), "--at-tokens", later]) == 0
    (tmp_path / "runs.csv").write_text(f"run,total_tokens\n{RUN},{later}\n")
    assert main(["predict", str(path), "--runs", str(tmp_path / "runs.csv")]) == 0
    capsys.readouterr()
