"""`fit` on the usual table for scaling laws: one row a model, task and metric; laws and scores whose truth is known."""

import csv
import json

import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.__main__ import main
from probes.dynamics.families import of_families
from probes.dynamics.fit_table import WantedFits, fit_rows
from probes.dynamics.published_gadre import gadre
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve

SIZES, RATIOS = (5e7, 1e8, 2e8, 4e8), (20, 80)
PLACE = ["--parameters", "2e9", "--tokens", "1e11"]


def loss_at(n, d):
    return 300 / n**0.3 + 300 / d**0.3 + 1.6


def score_at(loss):
    return 0.25 + 0.75 / (1 + np.exp(4 * (loss - 2.4)))


def models(sizes=SIZES, ratios=RATIOS):
    return [
        (f"model-{chr(97 + index)}", n, n * r) for index, (n, r) in enumerate((n, r) for n in sizes for r in ratios)
    ]


def write(path, *, columns=("run", "parameters", "tokens", "task", "metric", "value"), sizes=SIZES, ratios=RATIOS):
    rows = []
    for run, n, d in models(sizes, ratios):
        loss = loss_at(n, d)
        rows.append((run, n, d, "validation", "loss", loss))
        rows.append((run, n, d, "piqa", "acc", 0.5 + 0.5 * (score_at(loss) - 0.25) / 0.75))
        rows.append((run, n, d, "hellaswag", "acc", 0.25 + 0.001 * (n * 7 % 3 == 0)))
    names = ("run", "parameters", "tokens", "task", "metric", "value")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[row[names.index(name)] for name in columns] for row in rows])
    return path


def test_a_csv_of_eight_final_models_is_fitted_end_to_end(tmp_path, capsys):
    output = tmp_path / "fits.json"
    path = write(tmp_path / "table.csv")
    assert main(["fit", str(path), *PLACE, "--draws", "20", "--output", str(output)]) == 0
    rows = {(row["task"], row["metric"]): row for row in json.loads(output.read_text())}
    loss, score = rows["validation", "loss"], rows["piqa", "acc"]
    assert loss["law"] == "one-exponent"
    assert loss["predicted"] == pytest.approx(loss_at(2e9, 1e11), rel=0.005)
    assert loss["low_80%"] <= loss["predicted"] <= loss["high_80%"]
    assert score["law"] == "one-exponent + sigmoid" and score["through"] == "validation (loss)"
    truth = 0.5 + 0.5 * (score_at(loss_at(2e9, 1e11)) - 0.25) / 0.75
    assert score["predicted"] == pytest.approx(truth, abs=0.02)
    assert "no rise with compute over 8 models" in rows["hellaswag", "acc"]["refused"]
    assert "refused, 1: no rise with compute" in capsys.readouterr().out


def test_without_sizes_the_remedy_is_named(tmp_path, capsys):
    path = write(tmp_path / "table.csv", columns=("run", "tokens", "task", "metric", "value"))
    for arguments in (PLACE, []):
        assert main(["fit", str(path), *arguments]) == 1
        message = capsys.readouterr().err
        assert "needs finished runs of 3 sizes, and the table has 0" in message
        assert "model-a, model-b, model-c, …" in message and "--runs FILE" in message


def test_models_of_one_ratio_are_fitted_by_their_flops_and_other_ratios_refused(tmp_path):
    path, output = write(tmp_path / "table.csv", sizes=np.geomspace(2e7, 8e8, 8), ratios=(20,)), tmp_path / "fits.json"
    assert main(["fit", str(path), "--parameters", "4e9", "--tokens", "8e10", "--output", str(output)]) == 0
    row = next(row for row in json.loads(output.read_text()) if row["metric"] == "loss")
    assert row["law"] == "flops" and row["predicted"] == pytest.approx(loss_at(4e9, 8e10), rel=0.01)
    assert main(["fit", str(path), "--parameters", "4e9", "--tokens", "2e12", "--output", str(output)]) == 0
    row = next(row for row in json.loads(output.read_text()) if row["metric"] == "loss")
    assert row["predicted"] is None and "a law of FLOPs knows no others" in row["refused"]


def two_families(*, third=()):
    facts, curves = [], []
    for family, offset in (("web", 0.0), ("books", 0.5), *third):
        for run, n, d in models() if offset < 1 else models()[:1]:
            facts.append(RunFacts(name=f"{family}-{run}", family=family, parameters=n))
            row = [np.array([number]) for number in (-1.0, d, loss_at(n, d) + offset, np.nan)]
            curves.append(make_curve(*row, run=facts[-1].name, series=Series("validation", "loss"), domain="loss"))
    return CurveTable(facts, curves)


def test_each_family_has_its_own_law():
    rows = fit_rows(two_families(), WantedFits(parameters=2e9, tokens=1e11, draws=0))
    found = {row["family"]: row["predicted"] for row in rows}
    assert found["web"] == pytest.approx(loss_at(2e9, 1e11), rel=0.005)
    assert found["books"] == pytest.approx(loss_at(2e9, 1e11) + 0.5, rel=0.005)


def test_a_run_of_no_family_that_can_be_fitted_is_named():
    rows = fit_rows(two_families(third=(("mine", 1.0),)), WantedFits(parameters=2e9, tokens=1e11, draws=0))
    (left,) = [row for row in rows if row["run"]]
    assert left["run"] == "mine-model-a" and "no finished runs of 3 sizes" in left["refused"]


def test_families_that_are_only_names_stay_one_table():
    facts = [RunFacts(name=run, family=run, parameters=n) for run, n, _ in models()]
    assert list(of_families(CurveTable(facts, []), num_sizes=3).parts) == [""]


def test_a_law_of_the_loss_refuses_scores_that_have_no_loss():
    table = two_families()
    score = [make_curve(c.step_C, c.tokens_C, score_at(c.value_C), c.stderr_C, run=c.run, series=Series("new", "acc"),
                        domain="x", chance=0.25) for c in table]  # fmt: skip
    rows = fit_rows(CurveTable(table.runs.values(), score), WantedFits(law="ladder", draws=0))
    assert all("no loss was measured" in row["refused"] for row in rows)


def test_of_gadre_s_models_scores_are_predicted_from_finals_and_guessing_is_refused():
    known = [name for name, facts in gadre().runs.items() if facts.parameters < 5e8 and name.startswith("c4")]
    large = gadre().runs["c4_original-open_lm_1b-4.0"]
    wanted = WantedFits(
        tasks=["c4_val", "piqa", "math_qa"], parameters=large.parameters, tokens=large.total_tokens, draws=30
    )
    rows = {row["task"]: row for row in fit_rows(gadre().select(runs=known), wanted)}
    came = {curve.task: float(curve.value_C[0]) for curve in gadre().of_run(large.name)}
    assert rows["c4_val"]["predicted"] == pytest.approx(came["c4_val"], rel=0.02)
    assert rows["piqa"]["predicted"] == pytest.approx(came["piqa"], abs=0.02)
    assert rows["piqa"]["low_80%"] < came["piqa"] < rows["piqa"]["high_80%"]
    assert "no rise with compute over 31 models" in rows["math_qa"]["refused"]


def test_a_table_of_nothing_that_a_law_describes_says_so():
    curve = make_curve(*[np.array([1e9])] * 4, run="a", series=Series("x", "brier_score"), domain="x")
    facts = [RunFacts(name="a", parameters=1e8), RunFacts(name="b", parameters=2e8), RunFacts(name="c", parameters=3e8)]
    with pytest.raises(ProbeError, match="the table has none of them"):
        fit_rows(CurveTable(facts, [curve]), WantedFits())
