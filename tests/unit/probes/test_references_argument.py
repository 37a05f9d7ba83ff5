"""`--references` of every command that has it: names of runs, patterns, files and folders, published curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes.__main__ import main
from probes.dynamics.references import read_references
from probes.dynamics.table import CurveTable
from tests.support.curve_family import SIZES, STEPS, changed, family, run_of, with_values, write_csv

RUNS = [run_of(size) for size in SIZES[:4]]
RUN, SMALLER = RUNS[3], RUNS[:3]
NOW = 93_000 * 2e6


@pytest.fixture(scope="module")
def whole() -> CurveTable:
    return family(sizes=SIZES[:4], steps=STEPS[1::2])


@pytest.fixture(scope="module")
def files(whole: CurveTable, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """All runs; the one that is judged alone; the others alone."""
    folder = tmp_path_factory.mktemp("references")
    now = whole.until(RUN, NOW)
    tables = {"all": now, "mine": now.select(runs=[RUN]), "others": now.select(runs=SMALLER)}
    return tuple(str(write_csv(table, folder / f"{name}.csv")) for name, table in tables.items())  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["names", "pattern", "file"])
@pytest.mark.parametrize("command", ["predict", "state", "fit"])
def test_every_command_takes_names_patterns_and_files_as_references(
    command: str, kind: str, files: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything, mine, others = files
    path = mine if kind == "file" else everything
    references = {"names": SMALLER, "pattern": [f"{SMALLER[0][:4]}*"], "file": [others]}[kind]
    output = tmp_path / "rows.json"
    words = [command, path, "--references", *references, "--output", str(output)]
    more = {"predict": ["--run", RUN, "--metric", "ce_loss"], "state": ["--run", RUN]}.get(
        command, ["--without", RUN, "--metric", "ce_loss", "--draws", "0"] if kind != "file" else ["--draws", "0"]
    )
    assert main([*words, *more]) in (0, 3, 4, 5)
    printed = capsys.readouterr().out
    if command == "predict":
        (row,) = json.loads(output.read_text())
        assert row["method"].startswith(f"size and tokens, from {', '.join(SMALLER)}; its own past counts ")
    elif command == "state":
        assert "3 run(s) of" in printed
    else:
        assert {row["points"] for row in json.loads(output.read_text())} == {len(SMALLER)}


def test_what_is_neither_a_run_nor_a_path_is_named_with_the_nearest_run(
    files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("predict", "state", "fit"):
        assert main([command, files[0], "--references", RUN[:-1]]) == 1
        error = capsys.readouterr().err
        assert f"{RUN[:-1]} is neither a run in the table nor a path that exists" in error
        assert "Did you mean" in error and "published:pythia" in error


def test_a_named_run_that_cannot_be_a_reference_is_left_out_with_the_reason(whole: CurveTable) -> None:
    unknown = replace(whole.runs[SMALLER[0]], parameters=None)
    table = whole.until(SMALLER[1], NOW)
    table = CurveTable([unknown, *(facts for name, facts in table.runs.items() if name != SMALLER[0])], table.curves)
    read = read_references(table, SMALLER)
    assert read.names == [SMALLER[2]]
    assert read.left_out == {
        SMALLER[0]: "its size is unknown: say it in a --runs file, or as a column parameters",
        SMALLER[1]: "it is not at its planned end",
    }
    assert read_references(table, SMALLER, checked=False).names == SMALLER


def test_tokens_per_step_and_facts_hold_for_references_too(
    whole: CurveTable, files: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evals"
    for curve in whole.select(runs=SMALLER):
        for step, value in zip(curve.step_C.tolist(), curve.value_C.tolist(), strict=True):
            path = folder / curve.run / f"step{step}" / f"results_{curve.task}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"results": {curve.task: {f"{curve.metric},none": value}}, "n-shot": {curve.task: 0}}
            path.write_text(json.dumps(content))
    words = ["state", files[1], "--references", str(folder)]
    assert main(words) == 1
    assert "--tokens-per-step N" in capsys.readouterr().err
    assert main([*words, "--tokens-per-step", "2e6"]) in (0, 3, 5)
    assert "3 run(s) of" in capsys.readouterr().out


def test_runs_of_the_references_are_not_predicted(
    whole: CurveTable, files: tuple[str, str, str], tmp_path: Path
) -> None:
    output = tmp_path / "predicted.json"
    words = ["predict", files[1], "--references", "published:pythia", files[2], "--metric", "ce_loss"]
    assert main([*words, "--output", str(output)]) == 0
    assert {row["run"] for row in json.loads(output.read_text())} == {RUN}


def test_a_decaying_run_is_no_reference_even_where_it_is_named(
    whole: CurveTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sink(curve):  # type: ignore[no-untyped-def]
        if curve.run != SMALLER[0] or curve.lower_is_better:
            return curve
        return with_values(curve, curve.value_C - 0.1 * (np.arange(len(curve)) >= len(curve) - 3))

    path = write_csv(changed(whole.until(RUN, NOW), sink), tmp_path / "scores.csv")
    assert main(["predict", str(path), "--run", RUN, "--metric", "ce_loss", "--references", *SMALLER]) == 0
    printed = capsys.readouterr().out
    assert f"{SMALLER[0]} is no reference: its own scores decay" in printed
    assert f"from size and tokens, from {SMALLER[1]}, {SMALLER[2]}" in printed
