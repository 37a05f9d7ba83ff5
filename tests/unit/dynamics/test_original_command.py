"""`python -m probes compare RUN --original NAME`, on run directories and tables."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from probes.__main__ import main
from probes.dynamics.published_recipes import FULL_ITEMS, amber
from tests.support.synthetic_run import measurement, write_synthetic_run


def write_run(directory: Path, *, offset: float = 0.0, parameters: int = 6_738_415_616) -> Path:
    """A run directory whose scores are Amber's own, moved, at every thirtieth of its checkpoints."""
    write_synthetic_run(directory, probes=False)
    with (directory / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": 2e9, "step": 0, "kind": "start", "parameters": parameters}) + "\n")
    with (directory / "probes.jsonl").open("w") as file:
        for curve in amber():
            for step, tokens, value in list(zip(curve.step_C, curve.tokens_C, curve.value_C, strict=True))[::30]:
                items = FULL_ITEMS[curve.task]
                error = (value * (1 - value) / (items - 1)) ** 0.5
                row = measurement(int(step), curve.domain, curve.task, curve.metric, value + offset, error).to_json()
                row |= {"tokens": int(tokens), "num_fewshot": curve.num_fewshot, "num_items": items}
                file.write(json.dumps(row) + "\n")
    return directory


def test_a_run_is_put_beside_its_original_and_all_checkpoints_are_written(tmp_path, capsys):
    run, output = write_run(tmp_path / "demo"), tmp_path / "beside.csv"
    assert main(["compare", str(run), "--original", "amber", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "demo beside LLM360's Amber-7B at equal tokens:" in out
    assert "hellaswag (acc_norm, 10-shot): within noise; +0.0000 on average" in out
    assert "4 scores: none differs beyond noise (Holm over all, 5%). Taken together within noise" in out
    assert "model card says 43.67" in out
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 11 and {row["verdict"] for row in rows} == {"within"}
    assert {row["task"] for row in rows} == {"hellaswag", "mmlu", "arc_challenge", "truthfulqa_mc2"}


def test_a_run_five_points_below_is_called_so(tmp_path, capsys):
    assert main(["compare", str(write_run(tmp_path / "demo", offset=-0.05)), "--original", "amber"]) == 0
    out = capsys.readouterr().out
    assert "below in hellaswag (acc_norm, 10-shot)" in out and "Taken together below the original" in out
    assert "11 of 11 checkpoints outside it" in out


def test_a_run_can_be_put_beside_another_run(tmp_path, capsys):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", parameters=1_000_000)
    assert main(["compare", str(first), "--original", str(second)]) == 0
    out = capsys.readouterr().out
    assert "4 scores: none differs" in out and "no repetition" in out


def test_published_originals_can_be_compared_with_each_other_in_a_process():
    words = ["compare", "published:openllama", "--run", "open_llama_7b_v2", "--original", "openllama_7b_v1"]
    done = subprocess.run([sys.executable, "-m", "probes", *words], capture_output=True, text=True, check=True)
    assert "hellaswag (acc_norm, 0-shot): above the original; +0.0300" in done.stdout
    assert "hellaswag       acc_norm      0   1.05T  0.7500" in done.stdout


def test_a_run_of_a_recipe_is_told_that_there_is_an_original(tmp_path, capsys):
    run = write_run(tmp_path / "demo")
    config = (run / "config.yaml").read_text().replace("name: demo", "name: amber_7b")
    (run / "config.yaml").write_text(config)
    assert main(["compare", str(run), "--draws", "2"]) == 0
    told = "amber_7b repeats the recipe of LLM360's Amber-7B: --original amber puts it"
    assert told in capsys.readouterr().out
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["published:olmo-ladder", "--run", "190M-1xC", "--original", "amber"], "has no score that was measured as"),
        (
            ["published:olmo-ladder", "--run", "190M-1xC", "--original", "amber"],
            "python -m probes score RUN suite=amber",
        ),
        (["published:amber", "--original", "ambre"], "Did you mean amber?"),
        (["published:amber", "--original", "published:openllama"], "Name one of them with --original-run"),
        (
            ["published:amber", "--original", "openllama_7b_v1"],
            "not compared: hellaswag (acc_norm, 0-shot): the run has acc_norm, 10-shot",
        ),
    ],
)
def test_what_cannot_be_compared_is_explained(words, message, capsys):
    code = main(["compare", *words])
    shown = capsys.readouterr()
    assert message in shown.err + shown.out and (code == 1) == bool(shown.err)
