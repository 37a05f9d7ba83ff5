import csv
import lzma
import math

import numpy as np
import pytest

from probes.dynamics.load import load_curves
from probes.dynamics.published import (
    PYTHIA_TASKS,
    folder,
    ladder_reference_fit,
    olmo_ladder,
    pythia,
    pythia_batch_sizes,
    pythia_interventions,
)
from probes.dynamics.table import LOSS_DOMAIN, Series

# Final scores of Pythia, zero-shot, standard data, as its authors' files have them; 70m to 12b.
FINAL = {
    Series("lambada_openai", "acc", 0): (
        0.184553, 0.328352, 0.516204, 0.562003, 0.616146, 0.647196, 0.672812, 0.704638,
    ),
    Series("sciq", "acc", 0): (0.601, 0.741, 0.811, 0.84, 0.865, 0.882, 0.897, 0.902),
    Series("wsc", "acc", 0): (0.365385, 0.365385, 0.567308, 0.365385, 0.365385, 0.384615, 0.365385, 0.548077),
}  # fmt: skip


@pytest.mark.parametrize("series", FINAL, ids=str)
def test_pythia_has_its_final_scores_smallest_model_first(series: Series) -> None:
    found = pythia(deduped=False, num_fewshot=0).of_series(series)
    assert [round(float(curve.value_C[-1]), 6) for curve in found] == list(FINAL[series])
    assert {int(curve.step_C[-1]) for curve in found} == {143_000}


def test_the_four_sets_have_eight_sizes_each_and_all_finished() -> None:
    for deduped in (False, True):
        for shots, checkpoints in ((0, 27), (5, 15)):
            table = pythia(deduped=deduped, num_fewshot=shots)
            assert len(table.runs) == 8 and all(map(table.is_finished, table.runs))
            assert {facts.family for facts in table.runs.values()} == {"pythia-deduped" if deduped else "pythia"}
            for task in PYTHIA_TASKS:
                curves = table.of_series(Series(task.task, task.metric, shots))
                assert [len(curve) for curve in curves] == [checkpoints] * 8
                assert all(np.isfinite(curve.chance) for curve in curves)


def test_every_number_of_the_pythia_file_is_in_the_table() -> None:
    expected = {}
    with lzma.open(folder() / "pythia_evals.csv.xz", "rt") as file:
        for row in csv.DictReader(file):
            if row["model"] == "pythia-410m" and row["shots"] == "5":
                error = float(row["stderr"]) if row["stderr"] else math.nan
                expected[(row["task"], row["metric"], int(row["step"]))] = (float(row["value"]), error)
    table = pythia(deduped=False, num_fewshot=5)
    found = {
        (curve.task, curve.metric, int(step)): (float(value), float(error))
        for curve in table.of_run("pythia-410m")
        for step, value, error in zip(curve.step_C, curve.value_C, curve.stderr_C, strict=True)
    }
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(list(found.values()), [expected[key] for key in found])


def test_tokens_are_steps_of_two_million() -> None:
    curve = pythia(deduped=False, num_fewshot=0).get("pythia-70m", Series("piqa", "acc", 0))
    assert curve is not None
    assert np.array_equal(curve.tokens_C, 2_097_152.0 * curve.step_C)
    assert (curve.domain, curve.chance) == ("commonsense", 0.5)


def test_the_ladder_has_sixteen_runs_four_reruns_and_the_two_large_models() -> None:
    table = olmo_ladder()
    small = [name for name in table.runs if "xC" in name]
    assert len([name for name in small if "rerun" not in name]) == 16
    assert len([name for name in small if "rerun" in name]) == 4
    assert {name for name in table.runs if name.startswith("peteish")} >= {
        "peteish7_eval_anneal",
        "peteish13_eval_final",
    }
    assert all(facts.parameters and facts.parameters > 1e8 for facts in table.runs.values())


def test_the_ladder_s_seven_billion_scores_are_those_the_reference_fit_was_held_against() -> None:
    table, told = olmo_ladder(), ladder_reference_fit()
    anneal = [curve for curve in table.of_run("peteish7_eval_anneal") if curve.task == "hellaswag_val_rc_5shot"]
    by_metric = {curve.metric: float(curve.value_C[-1]) for curve in anneal}
    # Of OLMo 2 7B, read off the released table.
    assert by_metric["bpb"] == pytest.approx(0.673, abs=5e-4)
    assert by_metric["len_norm"] == pytest.approx(0.813, abs=5e-4)
    assert "hellaswag_val" in told and len(told) == 9


def test_the_ladder_s_loss_on_held_out_text_is_no_task() -> None:
    assert {curve.domain for curve in olmo_ladder() if curve.task == "c4_en-validation"} == {LOSS_DOMAIN}


def test_every_number_of_the_interventions_is_in_the_table_under_the_name_of_its_run() -> None:
    expected = {}
    with lzma.open(folder() / "pythia_evals_interventions.csv.xz", "rt") as file:
        for row in csv.DictReader(file):
            key = (row["model"].split(":")[1], row["task"], row["metric"], int(row["step"]) * 2_097_152.0)
            expected[key] = float(row["value"])
    found = {
        (curve.run, curve.task, curve.metric, float(tokens)): float(value)
        for curve in pythia_interventions()
        for tokens, value in zip(curve.tokens_C, curve.value_C, strict=True)
    }
    assert found == expected and len(found) == 15_914


def test_interventions_are_finished_branches_of_deduplicated_pythia_runs() -> None:
    table = load_curves(["published:pythia-interventions", "published:pythia-deduped"])
    branches = pythia_interventions().runs
    assert len(branches) == 9
    for name, facts in branches.items():
        original = table.runs[f"pythia-{name.split('-')[1]}-deduped"]
        assert (facts.family, facts.parameters, facts.total_tokens) == (
            original.family,
            original.parameters,
            original.total_tokens,
        )
        assert table.is_finished(name)
        steps = {int(curve.step_C[0]) for curve in table.of_run(name)}
        assert steps <= {114_000, 134_000}
    # The baseline is evaluated as the original run was: the same weights have the same score.
    both = [
        table.get(name, Series("lambada_openai", "acc", 0)) for name in ("baseline-1.4b-deduped", "pythia-1.4b-deduped")
    ]
    scores = [float(curve.value_C[curve.step_C == 123_000][0]) for curve in both if curve is not None]
    assert scores[0] == scores[1]


def test_batch_size_ablations_see_the_same_tokens_in_more_steps() -> None:
    table = pythia_batch_sizes()
    assert len(table.runs) == 5 and all(map(table.is_finished, table.runs))
    for curve in table:
        assert curve.tokens_C[-1] == pytest.approx(143_000 * 2_097_152, rel=1e-9)
        assert curve.step_C[-1] > 143_000
