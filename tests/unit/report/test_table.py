import json
from pathlib import Path

from probes.report.curves import curves_of
from probes.report.table import html_table, summary_table
from tests.support.synthetic_run import measurement, write_synthetic_run


def test_the_terminal_table_has_first_last_and_change(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run")
    (run / "probes.jsonl").write_text(
        "".join(
            json.dumps(measurement(step, "knowledge", "arc", "acc", value, 0.03).to_json()) + "\n"
            for step, value in ((0, 0.25), (7, 0.28), (9, 0.37))
        )
    )
    assert summary_table(run).splitlines() == [
        "domain     task  metric  step 0  step 9  change  in SE",
        "---------  ----  ------  ------  ------  ------  -----",
        "knowledge  arc   acc      0.250   0.370  +0.120   +2.8",
    ]


def test_lines_fit_a_terminal(tmp_path: Path) -> None:
    assert max(map(len, summary_table(write_synthetic_run(tmp_path / "run")).splitlines())) <= 80


def test_a_run_without_probes_says_so(tmp_path: Path) -> None:
    assert summary_table(write_synthetic_run(tmp_path / "run", probes=False)).startswith("No probes yet")


def test_a_clear_fall_of_bits_per_byte_is_better_and_of_accuracy_worse() -> None:
    def verdict(metric: str) -> str:
        rows = [measurement(step, "d", "t", metric, value, 0.01).to_json() for step, value in ((0, 0.5), (9, 0.2))]
        return html_table(curves_of(rows))

    assert "better" in verdict("gold_bpb") and "worse" not in verdict("gold_bpb")
    assert "worse" in verdict("acc") and "better" not in verdict("acc")


def test_one_score_alone_has_no_change() -> None:
    table = html_table(curves_of([measurement(9, "d", "<t>", "acc", 0.5, 0.01).to_json()]))
    assert "&lt;t&gt;" in table and "<t>" not in table and "+0.000" not in table
