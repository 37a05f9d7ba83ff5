"""The page that compares runs: what it holds, and that nothing in a run can break it."""

import json
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects
import pytest

from pretrain.errors import ProbeError
from probes.__main__ import main
from probes.dynamics.load import load_curves
from probes.dynamics.published import pythia
from probes.dynamics.table import CurveTable, RunFacts, Series, curve_of
from probes.report.compare_figures import joined, styles_of, x_layout
from probes.report.compare_intervals import OnsetRow, PredictionRow, onset_figure, prediction_figures
from probes.report.compare_page import write_comparison
from probes.report.compare_tables import TrustRow, predictions_table, trust_matrix, trust_table
from tests.support.synthetic_run import write_synthetic_run


def page_alone(text: str) -> str:
    """The page without plotly.js, which has markup and addresses of its own in strings."""
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def specifications(text: str) -> list[dict]:
    return [json.loads(found) for found in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    table = pythia(deduped=False, num_fewshot=0).select(
        runs=["pythia-160m", "pythia-410m", "pythia-1.4b", "pythia-12b"]
    )
    return write_comparison(table, tmp_path_factory.mktemp("page") / "comparison.html").read_text()


def test_every_section_is_there_and_every_figure_a_valid_specification(published: str) -> None:
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", published)
    assert titles == [
        "Runs", "Domains", "Alignment of sizes", "Predicted finals", "When abilities arise", "Trust in metrics",
    ]  # fmt: skip
    found = specifications(published)
    assert len(found) >= 5 + 4 + 2 + 2
    for figure in found:
        plotly.graph_objects.Figure(data=figure["data"], layout=figure["layout"])


def test_means_are_over_tasks_to_be_trusted_and_other_domains_say_that_they_are_not(published: str) -> None:
    page = page_alone(published)
    assert "<li>language: lambada_openai</li>" in page, "wsc is noise at every size"
    assert "<li>commonsense: piqa, winogrande</li>" in page
    for domain in ("examination", "reasoning"):
        assert f'{domain} <span class="unit">nothing to be trusted yet</span>' in page


def test_every_trace_has_a_place_on_every_axis(published: str) -> None:
    switched = [figure for figure in specifications(published) if "places" in figure]
    assert len(switched) == 5
    for figure in switched:
        assert set(figure["places"]) == {"tokens_per_parameter", "flops", "loss"}
        for place in figure["places"].values():
            assert [len(x) for x in place["x"]] == [len(trace["y"]) for trace in figure["data"]]
        for trace, ratio, flops in zip(
            figure["data"], figure["places"]["tokens_per_parameter"]["x"], figure["places"]["flops"]["x"], strict=True
        ):
            # FLOPs are 6 N D and the ratio D / N: their product is 6 D².
            product = np.array(ratio) * np.array(flops)
            assert product == pytest.approx(6 * np.array(trace["x"]) ** 2, rel=1e-3)


def test_the_page_is_offline_and_described_in_words(published: str) -> None:
    page = page_alone(published)
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    assert "default-src 'none'" in page and page.count("<h1>") == 1
    described = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert len(described) == len(specifications(published)) and all(len(text) > 30 for text in described)
    assert "pythia-12b from" in described[0]


def test_runs_differ_in_more_than_colour(published: str) -> None:
    styles = list(styles_of([f"run {number}" for number in range(28)]).values())
    assert len({(style.colour, style.dash) for style in styles}) == 28
    page = page_alone(published)
    for run in ("pythia-160m", "pythia-12b"):
        assert len(re.findall(rf'<button type="button" data-run="{run}" aria-pressed="true">', page)) == 3
    dashes = {
        trace["line"]["dash"] for trace in specifications(published)[0]["data"] if "dash" in trace.get("line", {})
    }
    assert dashes == {"solid", "dash", "dot", "dashdot"}


def test_finished_runs_are_predicted_from_the_past_and_held_against_what_came(published: str) -> None:
    page = page_alone(published)
    assert "pythia-12b at 69.2B tokens" in page, "the last checkpoint before 30% of the tokens"
    assert "size and tokens, from pythia-410m, pythia-1.4b" in page
    predicted = next(figure for figure in specifications(published) if figure["data"][0]["name"] == "predicted, 80%")
    assert {trace["name"] for trace in predicted["data"]} == {"predicted, 80%", "what came"}


def test_a_run_under_way_is_predicted_without_what_is_to_come(tmp_path: Path) -> None:
    whole = pythia(deduped=False, num_fewshot=0).select(runs=["pythia-410m", "pythia-1b-bf16", "pythia-1.4b"])
    page = write_comparison(whole.until("pythia-1.4b", 1e11), tmp_path / "page.html").read_text()
    assert "1 of 3 in progress or interrupted." in page
    first = next(figure for figure in specifications(page) if figure["data"][0]["name"] == "predicted, 80%")
    assert [trace["name"] for trace in first["data"]] == ["predicted, 80%"]
    assert "90.2B of 300B" in page_alone(page)


def test_run_directories_of_the_product_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_synthetic_run(tmp_path / "runs" / "first")
    second = write_synthetic_run(tmp_path / "runs" / "second", done=200)
    output = tmp_path / "page.html"
    assert main(["report", str(first), str(second), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"report: {output}" in printed and "demo [first]" in printed and "commonsense" in printed
    page = page_alone(output.read_text())
    assert "demo [first] and demo [second]" in page and "Bits per byte of right answers" in page
    assert "1 of 2 in progress" in page
    assert not (first / "report.html").exists()


def test_a_table_alone_is_compared_and_a_run_alone_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text("run,tokens,task,metric,value\nx,1,piqa,acc,.5\nx,2,piqa,acc,.6\n")
    assert main(["report", "scores.csv"]) == 0
    assert "Comparison of runs" in Path("comparison.html").read_text()
    write_synthetic_run(Path("demo"), steps=30)
    assert main(["report", "demo"]) == 0
    assert "Training report" in Path("demo/report.html").read_text()
    assert main(["report", "demo", "dmeo"]) == 1
    assert "does not exist. Runs nearby: demo" in capsys.readouterr().err


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no scores to compare"):
        write_comparison(CurveTable([RunFacts(name="a")], []), tmp_path / "page.html")


def test_runs_with_nothing_in_common_and_single_checkpoints_have_a_page(tmp_path: Path) -> None:
    def one(run: str, task: str, domain: str) -> object:
        return curve_of([(5, 1e9, 0.6, 0.01)], run=run, series=Series(task, "acc"), domain=domain, chance=0.5)

    table = CurveTable([], [one("a", "piqa", "commonsense"), one("b", "blimp", "language"), one("c", "odd", "x")])
    page = page_alone(write_comparison(table, tmp_path / "page.html").read_text())
    assert "3 runs" in page and "commonsense" in page
    lossless = CurveTable([], [curve_of([(5, 1e9, 2.5, 0.1)], run="a", series=Series("train", "loss"), domain="loss")])
    page = page_alone(write_comparison(lossless, tmp_path / "page.html").read_text())
    assert "No two runs have a task in common" in page


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>\"'"
    rows = [(step, step * 1e6, 0.3 + 0.005 * step, 0.01) for step in range(1, 60)]
    curves = [
        curve_of(rows, run=f"{hostile}{run}", series=Series(f"{hostile}{task}", "acc"), domain=hostile, chance=0.25)
        for run in range(3)
        for task in range(2)
    ]
    text = write_comparison(CurveTable([], curves), tmp_path / "page.html").read_text()
    assert "<img" not in page_alone(text) and hostile not in text
    assert specifications(text)


def test_many_runs_are_thinned_and_most_of_them_grey(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    curves = []
    for run in range(40):
        for task in range(3):
            scores = 0.25 + 0.5 / (1 + np.exp(-np.linspace(-3, 3, 150))) + noise.normal(0, 0.01, 150)
            rows = [(step, (step + 1) * 1e9, score, 0.01) for step, score in enumerate(scores)]
            name, series = f"run-{100 + run}m", Series(f"task_{task}", "acc")
            curves.append(curve_of(rows, run=name, series=series, domain="domain", chance=0.25))
    text = write_comparison(
        CurveTable([RunFacts(name=f"run-{100 + run}m", parameters=1e8 * (1 + run % 3)) for run in range(40)], curves),
        tmp_path / "page.html",
    ).read_text()
    first = specifications(text)[0]
    others = next(trace for trace in first["data"] if trace["legendgroup"] == "other runs")
    assert others["y"].count(None) == 31 and len(others["y"]) < 32 * 25
    assert len({trace["legendgroup"] for trace in first["data"]}) == 9
    assert "32 other runs" in page_alone(text)
    assert sum(map(len, re.findall(r'<script type="application/json".*?</script>', text))) < 400_000


def test_numbers_of_a_page_are_short_and_finite() -> None:
    parts = [np.array([1.23456789, np.nan]), np.array([np.inf, 2.0])]
    assert joined(parts) == [1.235, None, None, 2.0]
    assert joined(parts, gaps=True, digits=2) == [1.2, None, None, None, 2.0]
    falling = x_layout("loss", "loss", (2.0, 4.0))["range"]
    assert falling[0] > 4.0 and falling[1] < 2.0
    assert (
        x_layout("tokens", "tokens", (1e9, 1e9))["range"][0] < 9 < x_layout("tokens", "tokens", (1e9, 1e9))["range"][1]
    )


# Rows


def prediction(**changes: object) -> PredictionRow:
    told = {
        "run": "a", "label": "piqa", "metric": "acc", "at_tokens": 1e9, "value": 0.7, "low": 0.65, "high": 0.8,
        "came": 0.66, "method": "own past",
    }  # fmt: skip
    return PredictionRow(**(told | changes))


def test_a_prediction_s_bars_reach_its_interval() -> None:
    (figure,) = prediction_figures([prediction(), prediction(label="x", value=None, low=None, high=None)], {})
    bars = figure.data[0]["error_x"]
    assert bars["array"] == pytest.approx([0.1]) and bars["arrayminus"] == pytest.approx([0.05])
    assert "1 of 1 scores came inside" in figure.description
    assert [row.is_inside for row in (prediction(), prediction(came=0.9), prediction(came=None))] == [True, False, None]


def test_refusals_are_shown_with_their_reason() -> None:
    table = predictions_table([prediction(value=None, low=None, high=None, refused="at <chance>")])
    assert "refused: at &lt;chance&gt;" in table and "0.660" in table


def test_onsets_come_earliest_first_and_runs_beside_each_other() -> None:
    def row(run: str, label: str, tokens: float | None) -> OnsetRow:
        return OnsetRow(run=run, label=label, tokens=tokens, low=tokens, high=tokens, saturated_tokens=5e9)

    rows = [row("a", "late", 3e9), row("b", "late", 2e9), row("a", "early", 1e9), row("b", "early", None)]
    figure = onset_figure(rows, styles_of(["a", "b"]), title="Domains")
    assert figure is not None
    assert figure.layout["yaxis"]["ticktext"] == ["early", "late"]
    of_a = next(trace for trace in figure.data if trace["legendgroup"] == "a")
    of_b = next(trace for trace in figure.data if trace["legendgroup"] == "b")
    assert of_a["y"][0] < of_b["y"][0], "the first run stands above"
    assert onset_figure([row("a", "never", None)], styles_of(["a"]), title="Domains") is None


def test_the_trust_tables_show_what_to_watch_and_what_decays() -> None:
    def row(label: str, **changes: object) -> TrustRow:
        told = {
            "run": "a", "label": label, "metric": "acc", "domain": "x", "trusted": False, "decays": False,
            "watched": None, "above_chance": None, "monotonicity": 0.5, "gain": 2.0, "reason": "why",
        }  # fmt: skip
        return TrustRow(**(told | changes))

    rows = [row("quiet"), row("falling", decays=True), row("good", trusted=True, watched=0)]
    watch = trust_table(rows)
    assert watch.index("good") < watch.index("falling") and "quiet" not in watch
    matrix = trust_matrix(rows, ["a", "b"])
    assert "Trusted in none of these runs: quiet (acc)." in matrix
    assert "Nothing can be trusted yet" in trust_table([row("quiet")])


def test_what_is_loaded_of_a_run_is_what_the_page_counts(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "demo")
    table = load_curves([run])
    page = page_alone(write_comparison(table, tmp_path / "page.html").read_text())
    assert ">7<small>in 3 domains</small>" in page
