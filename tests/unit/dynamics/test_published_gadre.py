import csv
import lzma

import numpy as np
import pytest

from probes.dynamics.load import load_curves
from probes.dynamics.published import folder
from probes.dynamics.published_gadre import AVERAGE_TASKS, GADRE_SETS, gadre
from probes.dynamics.table import LOSS_DOMAIN, Series


def test_every_number_of_the_file_is_in_the_table() -> None:
    with lzma.open(folder() / "gadre_scaling.csv.xz", "rt") as file:
        expected = {(row["name"], row["task"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    found = {(curve.run, curve.task, curve.metric): float(curve.value_C[0]) for curve in gadre()}
    assert found == expected and len(found) == 104 * 54


def test_the_three_training_sets_are_families_of_four_small_sizes_and_two_large_ones() -> None:
    table = gadre()
    assert len(table.runs) == 104 and all(map(table.is_finished, table.runs))
    for name in GADRE_SETS:
        sizes = {facts.parameters for facts in table.runs.values() if facts.family == f"gadre-{name}"}
        assert [round(size / 1e6) for size in sorted(sizes)] == [11, 79, 154, 412, 1440, 6889]


def test_final_losses_are_those_the_authors_published() -> None:
    # The released results of rpj-open_lm_7b-1.0 and c4_original-open_lm_1b-4.0, rounded to four decimals.
    table = gadre()
    assert round(float(table.get("rpj-open_lm_7b-1.0", Series("c4_val", "loss")).value_C[0]), 4) == 2.425
    assert round(float(table.get("c4_original-open_lm_1b-4.0", Series("c4_val", "loss")).value_C[0]), 4) == 2.4724
    assert table.runs["c4_original-open_lm_1b-4.0"].total_tokens == 4 * 20 * 1_439_795_200


def test_scores_know_their_shots_chance_and_binomial_error_and_losses_have_none() -> None:
    table = gadre()
    score = table.get("rpj-open_lm_7b-1.0", Series("hellaswag_zeroshot", "acc", 0))
    value = float(score.value_C[0])
    assert score.chance == 0.25 and score.domain == "commonsense"
    assert float(score.stderr_C[0]) == pytest.approx(np.sqrt(value * (1 - value) / 10_042))
    losses = [curve for curve in table if curve.metric == "loss"]
    assert {curve.domain for curve in losses} == {LOSS_DOMAIN}
    assert all(np.isnan(curve.chance) for curve in losses) and len({curve.task for curve in losses}) == 8


def test_the_average_of_the_authors_is_over_17_of_the_tasks() -> None:
    assert len(AVERAGE_TASKS) == 17 and set(AVERAGE_TASKS) <= {curve.task for curve in gadre()}


def test_the_models_are_read_by_their_published_name() -> None:
    assert len(load_curves(["published:gadre"]).runs) == 104
