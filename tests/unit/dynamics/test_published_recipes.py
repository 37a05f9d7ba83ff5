"""What was published of Amber and OpenLLaMA: exact numbers, where they stand, and what is left out."""

import csv
import lzma

import numpy as np
import pytest

from probes.dynamics.load import load_curves
from probes.dynamics.protocol import items_of
from probes.dynamics.published import folder, pythia
from probes.dynamics.published_recipes import (
    FULL_ITEMS,
    amber,
    amber_curves,
    amber_total_tokens,
    finals,
    openllama,
    openllama_curves,
    openllama_first_preview,
)
from probes.dynamics.references import read_references
from probes.dynamics.table import CurveTable, Series

CHUNK = 762 * 4_587_520
HELLASWAG = Series("hellaswag", "acc_norm", 10)


def test_every_digitised_point_of_amber_stands_at_the_tokens_of_its_checkpoint() -> None:
    table = amber()
    renamed = {"truthfulqa_mc": ("truthfulqa_mc2", "acc")}
    expected: dict[tuple[str, str, int], dict[float, float]] = {}
    with lzma.open(folder() / "amber_curves_digitised.csv.xz", "rt") as file:
        for row in csv.DictReader(file):
            task, metric = renamed.get(row["task"], (row["task"], row["metric"]))
            tokens = (float(row["checkpoint_approx"]) + 1) * CHUNK
            expected.setdefault((task, metric, int(row["shots"])), {})[tokens] = float(row["value_digitised"])
    assert set(table.series()) == {Series(*key) for key in expected}
    for key, points in expected.items():
        curve = table.get("Amber", Series(*key))
        assert curve is not None
        np.testing.assert_allclose(curve.tokens_C[: len(points)], list(points), rtol=1e-12)
        assert curve.value_C[: len(points)].tolist() == list(points.values())
        assert len(curve) == len(points) + (key[0] != "truthfulqa_mc2"), "the card's final, but for TruthfulQA"


def test_the_tokens_the_file_tells_count_the_sample_s_last_id_and_what_chunks_drop() -> None:
    with lzma.open(folder() / "amber_curves_digitised.csv.xz", "rt") as file:
        rows = [(float(row["checkpoint_approx"]), float(row["tokens_B_approx"])) for row in csv.DictReader(file)]
    checkpoint_R, told_R = np.array(rows).T
    # 1,706,976 samples of 2,049 ids a chunk, to the file's decimals: 0.05 of a checkpoint's 3.5B and 0.05B.
    np.testing.assert_allclose((checkpoint_R + 1) * 1_706_976 * 2_049 / 1e9, told_R, atol=0.05 * 3.5 + 0.05)
    assert amber_total_tokens() == 360 * CHUNK == 1_258_448_486_400


def test_amber_s_last_scores_are_the_model_card_s() -> None:
    final = {curve.task: float(curve.value_C[-1]) for curve in amber().of_run("Amber")}
    assert final == {"hellaswag": 0.7391, "mmlu": 0.2853, "arc_challenge": 0.4257, "truthfulqa_mc2": 0.3358}
    card = {curve.task: float(curve.value_C[0]) for curve in finals().of_run("Amber (model card)")}
    assert card["truthfulqa_mc2"] == 0.4367, "which is not what the curve says"


def test_a_point_s_error_is_that_of_its_height_and_of_its_place() -> None:
    found = next(one for one in amber_curves() if one.curve.series == HELLASWAG)
    rise = (0.3207 - 0.2635) / 2.3
    # Points lie 1.17 checkpoints apart (1.2 and 1.1 by the file's decimals), so a place is known to 0.58.
    assert found.error_C[1] == pytest.approx(np.hypot(0.005, 0.58 * rise), rel=0.06)
    assert found.error_C[200] == pytest.approx(0.005, rel=0.05)
    assert found.error_C[-1] == 0.00005


def test_openllama_has_the_last_version_of_its_table() -> None:
    table = openllama()
    assert {name: len(table.of_run(name)) for name in table.runs} == {
        "open_llama_7b": 21,
        "open_llama_3b": 21,
        "open_llama_13b": 21,
        "open_llama_7b_v2": 21,
        "open_llama_3b_v2": 21,
    }
    # The README's table in its last version, by eye; HellaSwag and BoolQ are the rows one revision had mangled.
    for task, metric, values in (
        ("hellaswag", "acc", (0.49, 0.52, 0.53)),
        ("hellaswag", "acc_norm", (0.67, 0.70, 0.72)),
        ("boolq", "acc", (0.67, 0.70, 0.71)),
        ("record", "em", (0.88, 0.89, 0.89)),
        ("record", "f1", (0.88, 0.90, 0.90)),
        ("truthfulqa_mc1", "acc", (0.22, 0.24, 0.23)),
        ("truthfulqa_mc2", "acc", (0.36, 0.37, 0.35)),
    ):
        curve = table.get("open_llama_7b", Series(task, metric, 0))
        assert curve is not None and tuple(curve.value_C) == values
        assert curve.tokens_C.tolist() == [400e9, 700e9, 250_000 * 4_194_304]
    small = table.get("open_llama_3b", Series("hellaswag", "acc", 0))
    assert small is not None and small.value_C.tolist() == [0.45, 0.48, 0.49]
    assert {one.curve.task for one in openllama_curves()}.isdisjoint({"cb", "wsc", "ddboolq", "Average"})
    assert {series.num_fewshot for series in table.series()} == {0}


def test_the_first_preview_is_another_run_and_asked_for_by_name() -> None:
    table = openllama_first_preview()
    (name,) = table.runs
    assert table.runs[name].family not in {facts.family for facts in openllama().runs.values()}
    assert {float(curve.tokens_C[-1]) for curve in table} == {200e9}
    assert name not in load_curves(["published:amber", "published:openllama", "published:finals"]).runs


def test_sizes_are_those_of_the_models_configurations() -> None:
    shapes = {"3b": (26, 3200, 8640), "7b": (32, 4096, 11008), "13b": (40, 5120, 13824)}
    facts = openllama().runs | amber().runs
    for size, (layers, hidden, inner) in shapes.items():
        each = 4 * hidden**2 + 3 * hidden * inner + 2 * hidden
        expected = layers * each + 2 * 32_000 * hidden + hidden
        told = {one.parameters for name, one in facts.items() if f"_{size}" in name or (name, size) == ("Amber", "7b")}
        assert told == {expected}
    assert all(load_curves(["published:amber", "published:openllama"]).is_finished(name) for name in facts)


def test_numbers_of_items_are_those_that_published_standard_errors_tell() -> None:
    table = pythia(deduped=False, num_fewshot=0)
    for task in ("arc_easy", "arc_challenge", "piqa", "winogrande"):
        told = [items_of(curve) for curve in table if curve.task == task and curve.metric in ("acc", "acc_norm")]
        assert told and all(abs(one - FULL_ITEMS[task]) < 4 for one in told)


def test_amber_can_be_a_reference_of_a_run() -> None:
    own = CurveTable([], [])
    read = read_references(own, ["published:amber"])
    assert read.names == ["Amber"] and not read.left_out
