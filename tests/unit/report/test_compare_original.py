"""The section of a comparison that puts runs beside a published original."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects
import pytest

from probes.__main__ import main
from probes.dynamics.beside_original import put_beside
from probes.dynamics.load import load_curves
from probes.dynamics.originals import find_original, pairs_in, with_originals
from probes.dynamics.published_recipes import amber, openllama
from probes.dynamics.table import CurveTable, RunFacts, TaskCurve
from probes.report.compare_figures import Style
from probes.report.compare_original import original_figures
from probes.report.compare_tables import original_table

STYLE = Style("#0072B2", "solid", "circle")


def moved(table: CurveTable, run: str, *, offset: float) -> Iterator[TaskCurve]:
    """HellaSwag of a published run, lower by so much, under the name of another."""
    for curve in table.of_run(run):
        if curve.task == "hellaswag":
            thin = curve.where(np.arange(len(curve)) % 40 == 0) if len(curve) > 40 else curve
            yield replace(thin, run="<b>mine</b>", value_C=thin.value_C + offset)


def a_run(table: CurveTable, run: str, *, offset: float) -> CurveTable:
    return CurveTable([RunFacts(name="<b>mine</b>", parameters=6.74e9)], moved(table, run, offset=offset))


def test_the_band_is_drawn_about_the_original_and_marks_outside_it_are_hollow() -> None:
    table = a_run(amber(), "Amber", offset=-0.05)
    found = put_beside(table, "<b>mine</b>", find_original("amber"))
    (figure,) = original_figures(found, STYLE)
    band, original, own = figure.data
    plotly.graph_objects.Figure(data=figure.data, layout=figure.layout)
    count = len(original["x"])
    high, low = np.array(band["y"][:count]), np.array(band["y"][count:][::-1])
    np.testing.assert_allclose((high + low) / 2, original["y"], atol=1.1e-4)
    # At a checkpoint of the run the band is the one that judges it.
    task = found.tasks[0]
    half = np.interp(np.log(task.tokens_K), np.log(original["x"]), (high - low) / 2)
    np.testing.assert_allclose(half, task.half_K, rtol=0.06)
    assert own["marker"]["symbol"] == ["circle-open"] * len(task.tokens_K)
    assert own["name"] == "&lt;b&gt;mine&lt;/b&gt;" and "below the original" in figure.description
    same = put_beside(a_run(amber(), "Amber", offset=0.0), "<b>mine</b>", find_original("amber"))
    assert set(original_figures(same, STYLE)[0].data[-1]["marker"]["symbol"]) == {"circle"}


def test_of_a_single_published_checkpoint_a_mark_with_a_bar_is_drawn() -> None:
    table = a_run(openllama(), "open_llama_7b_v2", offset=0.0)
    found = put_beside(table, "<b>mine</b>", find_original("openllama_7b_v2"))
    figure = original_figures(found, STYLE)[0]
    assert [trace["mode"] for trace in figure.data] == ["markers", "markers"]
    assert figure.data[0]["error_y"]["array"] == [pytest.approx(found.tasks[0].half_K[0], rel=1e-3)]


def test_scores_that_are_not_compared_are_in_the_table_with_the_reason() -> None:
    found = put_beside(a_run(amber(), "Amber", offset=0.05), "<b>mine</b>", find_original("amber"))
    text = original_table(found)
    assert '<span class="better">above</span>' in text and "+0.050" in text
    assert text.count("not compared: the run was not scored on it") == 3
    assert "<b>mine</b>" not in text


def test_runs_are_paired_with_the_original_whose_recipe_they_repeat_or_the_only_one() -> None:
    runs = [RunFacts(name="openllama_3b_v2", parameters=3_426_473_600.0), RunFacts(name="demo", parameters=8e5)]
    own = CurveTable(runs, [])
    several = with_originals(own, [find_original(key) for key in ("openllama_7b_v1", "openllama_3b_v2")])
    assert pairs_in(several) == [("openllama_3b_v2", "openllama_3b_v2")]
    assert pairs_in(with_originals(own, [find_original("amber")])) == [("demo", "amber"), ("openllama_3b_v2", "amber")]
    assert pairs_in(load_curves(["published:amber", "published:openllama"])) == []


@pytest.mark.parametrize("words", [["published:amber"], ["--original", "amber"]])
def test_the_page_begins_with_the_run_beside_the_original(tmp_path: Path, words: list[str], capsys) -> None:
    scores = tmp_path / "scores.csv"
    rows = [
        f"mine,{tokens},hellaswag,acc_norm,10,{value - 0.05},0.004,6.74e9"
        for curve in moved(amber(), "Amber", offset=0.0)
        for tokens, value in zip(curve.tokens_C, curve.value_C, strict=True)
    ]
    scores.write_text("\n".join(["run,tokens,task,metric,num_fewshot,value,stderr,parameters", *rows]))
    output = tmp_path / "page.html"
    assert main(["report", str(scores), *words, "--output", str(output)]) == 0
    text = output.read_text()
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text)[:3] == ["Runs", "Beside the original", "Domains"]
    assert "mine beside LLM360&#x27;s Amber-7B, 1 score: below in hellaswag" in text
    figures = [json.loads(one) for one in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text)]
    assert figures[0]["data"][0]["name"].endswith("band")
    assert "Amber" in capsys.readouterr().out


def test_a_page_without_an_original_says_which_there_is(tmp_path: Path, capsys) -> None:
    scores = tmp_path / "scores.csv"
    row = "amber_7b,7000000000,piqa,acc,0,0.6,0.01,6.74e9"
    scores.write_text(f"run,tokens,task,metric,num_fewshot,value,stderr,parameters\n{row}\n")
    assert main(["report", str(scores), "--output", str(tmp_path / "page.html")]) == 0
    assert "--original amber puts it beside" in capsys.readouterr().out
    assert "Beside the original" not in (tmp_path / "page.html").read_text()
    assert main(["report", str(scores), "published:amber", "--output", str(tmp_path / "page.html")]) == 0
    assert "amber_7b is not beside the original on this page" in capsys.readouterr().out
