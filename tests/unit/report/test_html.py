import json
import re
from pathlib import Path

import plotly.graph_objects
import pytest

from probes.report.html import write_report
from probes.report.run_files import ReportError
from tests.support.synthetic_run import measurement, write_synthetic_run


def report(run: Path) -> str:
    return write_report(run, run / "report.html").read_text()


def page_alone(text: str) -> str:
    """The page without plotly.js, which has markup and addresses of its own in strings."""
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def specifications(text: str) -> list[dict]:
    return [json.loads(found) for found in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text)]


def test_every_figure_is_a_valid_plotly_specification(tmp_path: Path) -> None:
    found = specifications(report(write_synthetic_run(tmp_path / "run")))
    assert len(found) == 1 + 2 + 3 * 3 + 4 + 2
    for figure in found:
        plotly.graph_objects.Figure(data=figure["data"], layout=figure["layout"])


def test_the_page_holds_everything_and_forbids_requests(tmp_path: Path) -> None:
    page = page_alone(report(write_synthetic_run(tmp_path / "run")))
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    assert "default-src 'none'" in page
    assert '<html lang="en">' in page and page.count("<h1>") == 1


def test_every_figure_is_described_in_words(tmp_path: Path) -> None:
    page = page_alone(report(write_synthetic_run(tmp_path / "run")))
    described = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert len(described) == 18 and all(len(text) > 20 for text in described)
    assert described[0].startswith("Training loss goes from ")


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run")
    hostile = "</script><img src=x onerror=alert(1)>"
    (run / "config.yaml").write_text(f"run:\n  name: '{hostile}'\n")
    rows = [measurement(step, hostile, hostile, hostile, 0.1 * step, 0.01).to_json() for step in (0, 5)]
    (run / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": 1.0, "step": 1, "kind": hostile, hostile: hostile}) + "\n")
    text = report(run)
    assert "<img" not in page_alone(text)
    assert hostile not in text


def test_a_run_just_started_has_a_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("run: {name: young}\n")
    (run / "metrics.jsonl").write_text("")
    page = page_alone(report(run))
    assert "young" in page and "Nothing has been logged yet." in page and "No probes yet." in page


def test_torn_lines_nulls_and_unknown_columns_do_not_matter(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", done=20)
    for name in ("metrics.jsonl", "probes.jsonl", "events.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"step": 21, "tok')
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        '[1]\n{"step": "x"}\n{"step": 5, "tokens": 81920, "train/loss": null, "new/thing": "text"}\n' + text
    )
    assert "In progress or interrupted: step 20 of 400, 5 %." in report(run)


def test_a_run_with_only_step_zero_has_a_report(tmp_path: Path) -> None:
    page = page_alone(report(write_synthetic_run(tmp_path / "run", done=0)))
    assert "commonsense" in page


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_another_folder_is_refused_with_the_missing_file(tmp_path: Path, missing: str) -> None:
    run = write_synthetic_run(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(ReportError, match=f"is not a run directory: {missing} is missing"):
        report(run)


def test_the_report_is_replaced_whole(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", done=20)
    first = report(run)
    assert report(run) == first
    assert [path.name for path in run.iterdir() if "partial" in path.name] == []
