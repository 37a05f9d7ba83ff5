import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from probes.__main__ import main


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Path], Path]]:
    """Calls of the report writer, which is tested elsewhere."""
    calls: list[tuple[list[Path], Path]] = []
    module: Any = ModuleType("probes.report.html")
    module.write_report = lambda runs, output: calls.append((runs, output))
    monkeypatch.setitem(sys.modules, "probes.report.html", module)
    return calls


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_the_report_lies_in_the_run_directory_unless_told_otherwise(tmp_path: Path, written: list, capsys: Any):
    run = make_run(tmp_path / "runs" / "demo")
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert written == [([run], run / "report.html"), ([run], tmp_path / "page.html")]
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html"), str(tmp_path / "page.html")]


def test_several_runs_make_one_report(tmp_path: Path, written: list):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *map(str, runs)]) == 0
    assert written == [(runs, runs[0] / "report.html")]


def test_an_unknown_run_is_answered_with_the_runs_nearby(tmp_path: Path, written: list, capsys: Any):
    make_run(tmp_path / "runs" / "demo")
    assert main(["report", str(tmp_path / "runs" / "dmeo")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The run directory") and "does not exist" in error
    assert str(tmp_path / "runs" / "demo") in error
    assert main(["report", str(tmp_path / "runs")]) == 1
    assert str(tmp_path / "runs" / "demo") in capsys.readouterr().err
    assert written == []
