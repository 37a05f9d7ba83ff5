from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from probes.__main__ import main
from probes.dynamics.load import load_curves
from probes.dynamics.state import assess, state_rows
from probes.dynamics.surprises import ACT_FROM, WATCH_FROM
from tests.support.curve_family import SIZES, STEPS, changed, family, run_of, with_values, write_csv

RUNS = [run_of(size) for size in SIZES]
RUN, OTHERS = RUNS[2], [*RUNS[:2], *RUNS[3:]]
NOW = 83_000


@pytest.fixture(scope="module")
def whole():
    return family(offset=1.0, seed=1, steps=STEPS[1:])


@pytest.fixture(scope="module")
def others(whole, tmp_path_factory) -> Path:
    return write_csv(whole.select(runs=OTHERS), tmp_path_factory.mktemp("state") / "others.csv")


def dropped(curve):
    """A fifth of the score above chance is lost at the last checkpoint."""
    if curve.lower_is_better:
        return curve
    lost = 0.2 * (curve.value_C - curve.chance) * (np.arange(len(curve)) == len(curve) - 1)
    return with_values(curve, curve.value_C - lost)


def write_run(whole, path: Path, *, change=None, step=NOW) -> Path:
    alone = whole.select(runs=[RUN]).until(RUN, step * 2e6)
    return write_csv(changed(alone, change) if change else alone, path)


def test_a_healthy_run_is_said_to_be_healthy_in_one_line_and_a_table(whole, others, tmp_path, capsys):
    path = write_run(whole, tmp_path / "run.csv")
    assert main(["state", str(path), "--references", str(others)]) == 0
    first, head, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{RUN}, step 83,000: healthy: as expected from 4 run(s) of 400M to 6.00B parameters"
    assert head.split() == ["domain", "verdict", "change", "level", "task", "shots", "seen", "expected"]


def test_a_drop_is_called_with_its_evidence_and_written(whole, others, tmp_path, capsys):
    path, output = write_run(whole, tmp_path / "run.csv", change=dropped), tmp_path / "state.json"
    assert main(["state", str(path), "--references", str(others), "--output", str(output)]) == 4
    printed = capsys.readouterr().out
    assert printed.startswith(f"{RUN}, step 83,000: act: ")
    state = assess(load_curves([path, others]), RUN, references=OTHERS)
    for evidence in state.evidence:
        assert evidence.sentence in printed
    assert "  held against 4 run(s) of 400M to 6.00B parameters\n" in printed
    assert json.loads(output.read_text()) == state_rows(state)
    assert {row["run_verdict"] for row in state_rows(state)} == {"act"}


def test_rows_of_several_runs_are_written_one_after_the_other(whole, tmp_path, capsys):
    path, output = write_csv(whole, tmp_path / "whole.csv"), tmp_path / "state.csv"
    assert main(["state", str(path), "--run", RUNS[4], "--run", RUN, "--output", str(output)]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == 4 * [RUNS[4]] + 4 * [RUN]
    printed = capsys.readouterr().out
    assert printed.index(f"{RUNS[4]}, step") < printed.index(f"{RUN}, step") and RUNS[0] not in printed


def test_the_exit_code_is_that_of_the_gravest_verdict(whole, tmp_path):
    # One is healthy, one has a single checkpoint, one lost a fifth of its scores.
    lost, early = changed(whole.select(runs=[RUNS[3]]), dropped), whole.select(runs=[RUNS[2]]).until(RUNS[2], 3e9)
    paths = [
        str(write_csv(table, tmp_path / f"{name}.csv"))
        for name, table in (("healthy", whole.select(runs=[RUNS[4]])), ("unknown", early), ("act", lost))
    ]
    assert [main(["state", path]) for path in paths] == [0, 5, 4]
    assert main(["state", *paths[:2]]) == 5 and main(["state", *paths]) == 4


def test_change_and_level_are_explained_below_their_table(whole, others, tmp_path, capsys):
    main(["state", str(write_run(whole, tmp_path / "run.csv")), "--references", str(others)])
    *_, unit, change, level = capsys.readouterr().out.splitlines()
    assert unit.startswith("change and level are in standard deviations: below 0 is worse than expected.")
    assert f"From {-WATCH_FROM:g} down it calls for watch, from {-ACT_FROM:g} down for act (" in change
    assert level.startswith("level: the latest scores against runs of this size and token count")


def test_seen_is_the_state_of_then(whole, others, tmp_path, capsys):
    full, cut = write_run(whole, tmp_path / "full.csv", step=150_000), write_run(whole, tmp_path / "cut.csv")
    said = []
    for words in ([str(full), "--seen", "0.56"], [str(cut)]):
        assert main(["state", *words, "--references", str(others)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "step 83,000" in said[0]


def test_a_run_alone_is_held_against_its_own_past(whole, tmp_path, capsys):
    assert main(["state", str(write_run(whole, tmp_path / "run.csv"))]) == 0
    assert capsys.readouterr().out.startswith(f"{RUN}, step 83,000: healthy: as expected from its own past\n")
    path = write_run(whole, tmp_path / "dropped.csv", change=dropped)
    assert main(["state", str(path)]) == 4
    printed = capsys.readouterr().out
    assert f"{RUN}, step 83,000: act: " in printed and "held against its own past" in printed


def test_runs_among_the_paths_are_references_if_smaller(whole, others, tmp_path, capsys):
    path = write_run(whole, tmp_path / "run.csv")
    assert main(["state", str(path), str(others), "--run", RUN]) == 0
    assert (
        "as expected from 2 run(s) of 400M to 800M parameters (it is outside of them in size or length)"
        in capsys.readouterr().out
    )


def test_what_cannot_be_a_reference_is_named_with_the_reason(whole, tmp_path, capsys):
    unfinished = write_csv(whole.select(runs=OTHERS).until(OTHERS[0], 1e11), tmp_path / "others.csv")
    path = write_run(whole, tmp_path / "run.csv")
    assert main(["state", str(path), "--references", str(unfinished)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{OTHERS[0]} is no reference: it is not at its planned end.\n")
    assert "3 run(s) of 800M to 6.00B parameters" in printed


@pytest.mark.slow
def test_published_runs_are_references_for_each_other(capsys):
    words = ["state", "published:pythia", "--run", "pythia-2.8b", "--references", "published:pythia", "--seen", "0.51"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "pythia-70m is no reference: its own scores decay" in printed
    assert "pythia-2.8b, step 63,000: healthy: as expected from 5 run(s) of 302M to 11.3B parameters\n" in printed


def test_decay_of_pythia_70m_is_said(capsys):
    assert main(["state", "published:pythia-deduped", "--run", "pythia-70m-deduped"]) in (3, 4)
    printed = capsys.readouterr().out
    assert "tasks that had risen have lost part of what they had: " in printed and ": healthy" not in printed


def test_references_that_measured_nothing_the_same_leave_the_own_past(whole, tmp_path, capsys):
    path = write_run(whole, tmp_path / "run.csv")
    assert main(["state", str(path), "--references", "published:pythia"]) == 0
    printed = capsys.readouterr().out
    assert "healthy: as expected from its own past, since no reference of known size has measured the same" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "made-1500"], "--run made-1500: there is no such run. Did you mean made-1500M?"),
        (["--references", "nowhere.csv"], "nowhere.csv"),
        (["--references", "published:pithia"], "published:pythia"),
    ],
)
def test_wrong_words_are_refused_with_the_nearest_right_ones(whole, tmp_path, capsys, words, message):
    path = write_run(whole, tmp_path / "run.csv")
    assert main(["state", str(path), *words]) == 1
    assert message in capsys.readouterr().err
