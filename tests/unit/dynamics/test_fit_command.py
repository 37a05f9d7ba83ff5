import csv
import json

import numpy as np
import pytest

from pretrain.config.load import compose, to_yaml
from probes.__main__ import main
from probes.dynamics.annealing import annealing_areas, planned_rates
from probes.dynamics.fit_table import WantedFits, fit_rows
from probes.dynamics.laws import ANNEALING, ANNEALING_AREA, FORWARD_AREA
from probes.dynamics.published import olmo_ladder, pythia
from tests.support.synthetic_run import write_synthetic_run

LADDER = ["published:olmo-ladder", "--without", "*-rerun", "peteish*"]
SEVEN = ["--parameters", "6887575552", "--tokens", "3945065873408"]
TASKS = ["--task", "piqa_val_rc_5shot", "--task", "boolq_val_rc_5shot"]


@pytest.fixture(scope="module")
def ladder():
    runs = [name for name in olmo_ladder().runs if "rerun" not in name and "peteish" not in name]
    return olmo_ladder().select(runs=runs, series=[one for one in olmo_ladder().series() if "mmlu" not in one.task])


def by_name(rows):
    return {(row["law"], row["task"], row["metric"]): row for row in rows}


def test_the_ladder_is_fitted_in_two_steps_and_the_degenerate_named(capsys, tmp_path):
    output = tmp_path / "fits.csv"
    law = ["--law", "ladder", "--draws", "20"]
    assert main(["fit", *LADDER, *SEVEN, *TASKS, *law, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "ladder + sigmoid  piqa_val_rc_5shot  len_norm" in printed and "alpha 0.398 [" in printed
    assert "refused, 1: E is at its bound" in printed and "boolq_val_rc_5shot (bpb)" in printed
    assert "refused, 1: at chance in every run that measured it" in printed
    rows = by_name(csv.DictReader(output.open()))
    loss = rows["ladder", "piqa_val_rc_5shot", "bpb"]
    assert float(loss["predicted"]) == pytest.approx(0.8903, abs=5e-4)
    assert float(loss["low_80%"]) < 0.8903 < float(loss["high_80%"])
    score = rows["ladder + sigmoid", "piqa_val_rc_5shot", "len_norm"]
    assert float(score["predicted"]) == pytest.approx(0.8122, abs=5e-4) and score["through"] == "bpb"
    refused = rows["ladder", "boolq_val_rc_5shot", "bpb"]
    assert refused["predicted"] == "" and "E is at its bound" in refused["refused"]


def test_without_a_place_parameters_are_all_there_is(ladder):
    rows = fit_rows(ladder, WantedFits(tasks=["piqa_val_rc_5shot"], draws=10))
    assert all(row["predicted"] is None and row["refused"] is None for row in rows)
    assert rows[0]["alpha_low"] < rows[0]["alpha"] < rows[0]["alpha_high"]


@pytest.mark.parametrize(
    ("law", "metric", "value"),
    [
        ("gadre", "bpb", 0.880),
        ("flops", "bpb", 0.894),
        ("llama3", "bpb", 0.777),
        ("direct", "len_norm", 0.839),
        ("direct-flops", "len_norm", 0.845),
    ],
)
def test_other_laws_are_fitted_by_name(ladder, law, metric, value):
    wanted = WantedFits(law=law, tasks=["piqa_val_rc_5shot"], parameters=6.9e9, tokens=3.9e12, draws=0)
    row = by_name(fit_rows(ladder, wanted))[law, "piqa_val_rc_5shot", metric]
    # No oracle but this fit itself: the values guard against a change that nobody meant.
    assert row["predicted"] == pytest.approx(value, abs=0.004)


def test_pythia_s_mmlu_is_refused_throughout():
    rows = fit_rows(pythia(deduped=False, num_fewshot=0), WantedFits(parameters=2e10, tokens=3e11, draws=0))
    # All runs are of one length: laws of FLOPs, of LAMBADA's perplexity and of the scores.
    assert {row["law"] for row in rows if row["predicted"]} == {"flops", "direct-flops"}
    assert all(row["refused"] for row in rows if row["task"].startswith("hendrycksTest"))
    good = {row["task"] for row in rows if not row["refused"]}
    assert {"lambada_openai", "piqa", "arc_easy", "sciq"} <= good


def test_one_run_is_carried_on_by_its_own_tokens():
    table = pythia(deduped=False, num_fewshot=0).select(runs=["pythia-6.9b"])
    half = table.until("pythia-6.9b", 1.5e11)
    rows = fit_rows(half, WantedFits(tasks=["lambada_openai"], draws=20))
    came = table.get("pythia-6.9b", next(one for one in table.series() if str(one).startswith("lambada_openai (acc")))
    assert rows[0]["law"] == "tokens" and rows[0]["run"] == "pythia-6.9b"
    assert rows[0]["low_80%"] < came.value_C[-1] < rows[0]["high_80%"]


def live_run(folder, *, steps, done):
    """A run whose plan is a whole configuration, and whose losses obey the law under that plan."""
    directory = write_synthetic_run(folder, steps=steps, done=done)
    config = compose(["experiment=demo", f"train.steps={steps}", "schedule.kind=cosine", "run.name=demo"])
    (directory / "config.yaml").write_text(to_yaml(config))
    forward, annealing = annealing_areas(planned_rates(config))
    at = {FORWARD_AREA: forward, ANNEALING_AREA: annealing}
    at[FORWARD_AREA][0] = at[FORWARD_AREA][1]  # the first step's rate is 0
    loss = ANNEALING.values(np.array([-1.0, 0.4, 2.0, 2.0]), at)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        if row["step"] > 5:
            row["validation/web/loss"] = loss[row["step"] - 1]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory, float(loss[-1])


def test_a_live_run_is_told_its_end_by_its_planned_learning_rates(tmp_path):
    directory, end = live_run(tmp_path / "demo", steps=300, done=240)
    output = tmp_path / "fits.json"
    arguments = ["--law", "annealing", "--task", "validation/web", "--draws", "10", "--output", str(output)]
    assert main(["fit", str(directory), *arguments]) == 0
    (row,) = json.loads(output.read_text())
    assert row["law"] == "annealing" and row["run"] == "demo" and row["refused"] is None
    assert row["predicted"] == pytest.approx(end, rel=0.003)
    assert row["low_80%"] < end < row["high_80%"]


def test_a_run_whose_plan_cannot_be_read_is_fitted_by_the_rates_so_far(tmp_path, capsys):
    directory = write_synthetic_run(tmp_path / "demo", steps=300, done=240)
    assert main(["fit", str(directory), "--law", "annealing", "--draws", "0"]) == 0
    assert "its plan cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "1.2"], "--level 1.2 is no share"),
        (["--draws", "-1"], "--draws -1 is negative"),
        (["--tokens", "0"], "--tokens 0 is not above 0"),
        (["--parameters", "7e9"], "A place is both"),
        (["--references", "2B-*"], "2B-* is neither a run in the table nor a path"),
        (["--law", "annealing"], "needs learning rates"),
        (["--task", "nothing"], "the table has none of them"),
    ],
)
def test_what_cannot_be_fitted_is_answered_with_the_remedy(arguments, message, capsys):
    assert main(["fit", *LADDER, *arguments]) == 1
    assert message in capsys.readouterr().err
