"""Arithmetic and format of benchmark results; nothing is timed."""

from __future__ import annotations

import json

import pytest

from tests.bench.result import describe_machine, is_quiet, package_versions, ratio, spread, write_result
from tests.bench.step_overhead import compare, overhead


def row(framework: float, bare: float) -> dict[str, list[float]]:
    return {"framework": [framework, framework / 2], "bare": [bare, bare / 2]}


def test_a_result_file_holds_exactly_the_agreed_fields(tmp_path):
    path = tmp_path / "results" / "one.json"
    machine = describe_machine(threads=1)
    write_result(
        path,
        name="one",
        figures={"ratio": 0.123456789, "missing": {"other": "why"}, "other": None},
        command="python -m tests.bench.one",
        machine=machine,
        versions=package_versions(["torch", "no-such-package-here"]),
    )
    found = json.loads(path.read_text())
    assert set(found) == {"name", "figures", "command", "machine", "versions", "date"}
    assert found["figures"] == {"ratio": 0.12346, "missing": {"other": "why"}, "other": None}
    assert found["versions"]["torch"] and found["versions"]["no-such-package-here"] is None
    assert {"cpu", "cores", "threads", "load_before"} <= set(found["machine"])


def test_a_figure_that_is_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path / "x", name="x", figures={"a": float("nan")}, command="", machine={}, versions={})


def test_a_busy_machine_is_warned_of(capsys):
    assert is_quiet({"load_before": 0.1})
    assert capsys.readouterr().err == ""
    assert not is_quiet({"load_before": 1.5})
    assert "load average is 1.5" in capsys.readouterr().err


def test_no_ratio_is_made_of_a_missing_or_negative_overhead():
    assert ratio(1.0, 2.0) == 0.5
    assert ratio(1.0, None) is None
    assert ratio(1.0, -0.1) is None


def test_spread_is_the_median_and_quartiles():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "first_quartile": 2.0, "third_quartile": 4.0}
    assert spread([7.0]) == {"median": 7.0, "first_quartile": 7.0, "third_quartile": 7.0}


def test_overhead_is_the_median_over_rounds_of_median_paired_differences():
    # The machine slows down within the first round; pairs share it, so their differences do not see it.
    slowing = [row(11.0, 10.0), row(31.0, 30.0), row(51.0, 50.0)]
    found = overhead([slowing, [row(13.0, 10.0)] * 3, [row(12.0, 10.0)] * 3])
    assert found["overhead_ms"]["median"] == 2.0
    assert found["overhead_cpu_ms"]["median"] == 1.0
    assert (found["framework_ms"], found["bare_ms"]) == (13.0, 10.0)


def test_a_peer_that_did_not_run_is_null_with_its_reason():
    measured = {"ours": overhead([[row(11.0, 10.0)]]), "hf_trainer": overhead([[row(14.0, 10.0)]])}
    found = compare(measured, {"litgpt": "litgpt could not be installed"})
    assert found["framework_ms_per_step"] == 1.0
    assert found["over_hf_trainer"] == 0.25
    assert found["over_litgpt"] is None
    assert found["missing"]["over_litgpt"] == "litgpt could not be installed"
