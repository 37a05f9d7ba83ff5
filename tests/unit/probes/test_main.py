"""The command line of the prober, on a made-up but complete run."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.__main__ import main
from tests.support.synthetic_run import write_synthetic_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_synthetic_run(tmp_path / "runs" / "demo", steps=40)


def test_the_report_lies_in_the_run_directory_unless_told_otherwise(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert (run / "report.html").read_text() == (tmp_path / "page.html").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("report:")] == [
        f"report: {run / 'report.html'}",
        f"report: {tmp_path / 'page.html'}",
    ]
    assert any(line.startswith("domain") and "step 0" in line for line in lines), "a table of first and last scores"


def test_an_unknown_run_is_answered_with_the_runs_nearby(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "runs" / "dmeo")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The run directory") and "does not exist" in error and str(run) in error
    assert main(["report", str(tmp_path / "runs")]) == 1
    assert str(run) in capsys.readouterr().err
    assert not (tmp_path / "runs" / "report.html").exists()


def test_a_failed_report_leaves_with_its_message_and_no_traceback(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").unlink()
    assert main(["report", str(run)]) == 1
    assert "config.yaml is missing" in capsys.readouterr().err
