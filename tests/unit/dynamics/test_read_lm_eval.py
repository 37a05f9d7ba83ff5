"""Folders of lm-eval's results: steps and tokens from names, runs' names, several files of one checkpoint."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.checkpoint_names import Place, model_in, place_in
from probes.dynamics.load import load_curves
from probes.dynamics.table import RunFacts, Series


def result(folder: Path, name: str, scores: dict[str, Any], **more: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": scores, **more}))
    return path


NEW = {
    "piqa": {
        "alias": "piqa",
        "sample_len": 1838,
        "acc,none": 0.6,
        "acc_stderr,none": 0.01,
        "acc_norm,none": 0.7,
        "acc_norm_stderr,none": "N/A",
    }
}


def test_results_as_lm_eval_writes_them_are_read_by_revision(tmp_path: Path) -> None:
    for step, score in ((1000, 0.5), (3000, 0.6)):
        scores = {"piqa": NEW["piqa"] | {"acc,none": score}, "gsm8k": {"exact_match,strict-match": 0.1}}
        result(
            tmp_path, f"{step}/EleutherAI__pythia-70m/results_2024-05-01T10-00-0{step // 1000}.json", scores,
            config={
                "model_args": f"pretrained=EleutherAI/pythia-70m,revision=step{step},dtype=float16",
                "model_num_parameters": 70_426_624,
            },
            **{"n-shot": {"piqa": 5, "gsm8k": 8}},
        )  # fmt: skip
    table = load_curves([tmp_path], tokens_per_step=2_097_152)
    assert table.runs["pythia-70m"] == RunFacts(name="pythia-70m", family="pythia", parameters=70_426_624.0)
    curve = table.get("pythia-70m", Series("piqa", "acc", 5))
    assert curve is not None
    assert (curve.step_C.tolist(), curve.value_C.tolist()) == ([1000, 3000], [0.5, 0.6])
    assert curve.tokens_C.tolist() == [2_097_152e3, 3 * 2_097_152e3]
    assert curve.stderr_C.tolist() == [0.01, 0.01] and curve.chance == 0.5
    assert {one.metric for one in table} == {"acc", "acc_norm", "exact_match,strict-match"}
    assert np.isnan(table.get("pythia-70m", Series("piqa", "acc_norm", 5)).stderr_C).all()  # type: ignore[union-attr]
    assert table.get("pythia-70m", Series("gsm8k", "exact_match,strict-match", 8)).chance == 0.0  # type: ignore[union-attr]


def test_results_of_old_are_read_by_file_name(tmp_path: Path) -> None:
    old = {"piqa": {"acc": 0.6, "acc_stderr": 0.01}}
    result(tmp_path / "70m", "70m_step512.json", old, config={"model_args": "", "num_fewshot": 0})
    result(tmp_path / "70m", "70m_step143000.json", old, config={"num_fewshot": 0})
    (tmp_path / "70m" / "settings.json").write_text("{}")
    curve = load_curves([tmp_path / "70m"], tokens_per_step=10).get("70m", Series("piqa", "acc", 0))
    assert curve is not None and curve.step_C.tolist() == [512, 143_000]


@pytest.mark.parametrize(
    ("name", "arguments", "step"),
    [
        ("step_00000512/results_x.json", "", 512),
        ("ckpt_7/results_x.json", "pretrained=/models/other/step_9", 7),
        ("checkpoint-500/results.json", "", 500),
        ("global_step20/results.json", "", 20),
        ("a/results_x.json", "pretrained=/runs/mine-1b/export/step_00001000", 1000),
        ("a/results_x.json", {"pretrained": "org/m", "revision": "step1000-tokens4B"}, 1000),
    ],
)
def test_the_step_is_found_in_names(tmp_path: Path, name: str, arguments: Any, step: int) -> None:
    result(tmp_path / "evals", name, NEW, config={"model_args": arguments})
    table = load_curves([tmp_path / "evals"], tokens_per_step=10)
    assert {int(curve.step_C[0]) for curve in table} == {step}
    if isinstance(arguments, str) and "mine" in arguments:
        assert list(table.runs) == ["mine-1b"] and table.runs["mine-1b"].parameters == 1e9


def test_of_two_results_of_one_checkpoint_the_later_counts_and_others_are_added(tmp_path: Path) -> None:
    result(tmp_path, "step_5/results_2024-01-02.json", {"piqa": {"acc,none": 0.7}})
    result(tmp_path, "step_5/results_2024-01-01.json", {"piqa": {"acc,none": 0.2}, "sciq": {"acc,none": 0.9}})
    table = load_curves([tmp_path], tokens_per_step=10)
    assert {curve.task: curve.value_C.tolist() for curve in table} == {"piqa": [0.7], "sciq": [0.9]}


def test_what_lm_eval_does_not_record_is_asked_for(tmp_path: Path) -> None:
    path = result(tmp_path, "final/results_x.json", NEW)
    with pytest.raises(ProbeError, match="does not tell its step.*step_1000"):
        load_curves([tmp_path], tokens_per_step=10)
    path.rename(tmp_path / "final" / "results_step_3.json")
    with pytest.raises(ProbeError, match="does not record tokens.*--tokens-per-step"):
        load_curves([tmp_path])
    (tmp_path / "final" / "results_step_4.json").write_text('{"results": ')
    with pytest.raises(ProbeError, match="results_step_4.json is not JSON"):
        load_curves([tmp_path], tokens_per_step=10)


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("step_00001000", 1000, None),
        ("pythia-1.4b-0shot-global_step71500_eval_results_12-29-2022-16-09-11", 71_500, None),
        ("ckpt_000", 0, None),
        ("iter-0001000", 1000, None),
        ("checkpoint_12000", 12_000, None),
        ("epoch=1-step=2000", 2000, None),
        ("ep0-ba1000", 1000, None),
        ("5000steps", 5000, None),
        ("step1000-tokens4B", 1000, 4e9),
        ("stage1-step928646-tokens3896B", 928_646, 3.896e12),
        ("TinyLlama-1.1B-step-50K-105b", 50_000, 105e9),
        ("TinyLlama-1.1B-intermediate-step-240k-503b", 240_000, 503e9),
        ("TinyLlama-1.1B-intermediate-step-1195k-token-2.5T", 1_195_000, 2.5e12),
        ("open_llama_3b_600bt_preview", -1, 600e9),
        ("step1000-7b", 1000, None),
        ("0001000", 1000, None),
        ("20240501", None, None),
        ("results_2024-05-01T10-00-01.123", None, None),
    ],
)
def test_names_of_many_projects_tell_steps_and_tokens(name: str, step: int | None, tokens: float | None) -> None:
    place = place_in([name], folders=[name])
    assert (place.step if place else None) == step
    assert place is None or (place.tokens == tokens if tokens else np.isnan(place.tokens))


def test_a_bare_number_counts_only_where_no_other_name_tells_a_step() -> None:
    assert place_in(["5", "step1000"], folders=["5"]) == Place(1000)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("pythia-1.4b-0shot-global_step11500_eval_results_12-29-2022-16-09-11", "pythia-1.4b"),
        ("TinyLlama-1.1B-step-50K-105b", "TinyLlama-1.1B"),
        ("TinyLlama-1.1B-intermediate-step-1431k-3T", "TinyLlama-1.1B"),
        ("EleutherAI__pythia-70m", "pythia-70m"),
        ("zero-shot", ""),
        ("step1000", ""),
        ("results_2024-05-01T10-00-01.123", ""),
        ("20240501", ""),
        ("pythia-2.8b-0shot-global_step103000__eval_results_11-25-2022-03-57-52", "pythia-2.8b"),
    ],
)
def test_a_model_is_named_without_what_tells_the_checkpoint(part: str, name: str) -> None:
    assert model_in(part) == name


def test_results_of_an_old_zero_shot_folder_are_of_the_model_in_their_names(tmp_path: Path) -> None:
    for shots, word in ((0, "zero"), (5, "five")):
        for step in (1500, 71_500):
            result(
                tmp_path / "pythia-1.4b" / f"{word}-shot",
                f"pythia-1.4b-{shots}shot-global_step{step}_eval_results_12-29-2022-16-09-11.json",
                {"piqa": {"acc": 0.6 + step / 1e6, "acc_stderr": 0.01}},
                config={"model": "neox", "model_args": {"load": "/ckpts/1.3B"}, "num_fewshot": shots},
            )
    alone = load_curves([tmp_path / "pythia-1.4b" / "zero-shot"], tokens_per_step=4_194_304)
    assert list(alone.runs) == ["pythia-1.4b"] and alone.runs["pythia-1.4b"].parameters == 1.4e9
    assert [curve.step_C.tolist() for curve in alone] == [[1500, 71_500]]
    both = load_curves([tmp_path], tokens_per_step=4_194_304)
    assert list(both.runs) == ["pythia-1.4b"] and {one.num_fewshot for one in both.series()} == {0, 5}


def test_models_in_folders_of_one_folder_are_runs_of_their_own(tmp_path: Path) -> None:
    for model, value in (("small-70m", 0.5), ("large-1b", 0.6)):
        result(tmp_path, f"{model}/step1000/results_2024-01-01T10-00-00.json", {"piqa": {"acc,none": value}})
    table = load_curves([tmp_path], tokens_per_step=10)
    assert {curve.run: curve.value_C.tolist() for curve in table} == {"small-70m": [0.5], "large-1b": [0.6]}


def test_tokens_in_names_need_no_tokens_per_step_and_are_made_exact_by_the_last(tmp_path: Path) -> None:
    per_step = 4_423_680  # OLMo 7B: 2160 sequences of 2048
    for step, written in ((1000, "4B"), (10_000, "44B"), (557_000, "2464B")):
        model = {"model_args": f"pretrained=allenai/OLMo-7B,revision=step{step}-tokens{written}"}
        result(tmp_path, f"{written}/results_a.json", {"piqa": {"acc,none": step / 1e6}}, config=model)
    table = load_curves([tmp_path])
    (curve,) = table
    assert curve.run == "OLMo-7B" and curve.step_C.tolist() == [1000, 10_000, 557_000]
    np.testing.assert_allclose(curve.tokens_C, curve.step_C * per_step, rtol=3e-4)
    assert table.notes == ("OLMo-7B: tokens are taken from names, 4.42M per step.",)
    exact = load_curves([tmp_path], tokens_per_step=per_step)
    assert exact.curves[0].tokens_C.tolist() == [step * per_step for step in (1000, 10_000, 557_000)]
    assert exact.notes == ()
    (note,) = load_curves([tmp_path], tokens_per_step=1000).notes
    assert note.startswith("OLMo-7B: at step 557,000 the name tells 2.46T tokens, but 1.00k tokens per step make 557M.")


def test_the_same_scores_in_two_folders_count_once_and_others_are_refused_with_both_files(tmp_path: Path) -> None:
    result(tmp_path, "a/step5/results_a.json", {"piqa": {"acc,none": 0.7}}, model_name="m")
    second = result(tmp_path, "b/step5/results_b.json", {"piqa": {"acc,none": 0.7}}, model_name="m")
    assert [curve.value_C.tolist() for curve in load_curves([tmp_path], tokens_per_step=10)] == [[0.7]]
    second.write_text(second.read_text().replace("0.7", "0.8"))
    with pytest.raises(
        ProbeError, match=r"piqa \(acc\) of m at step 5 is 0.7 in .*results_a.json and 0.8 in .*results_b"
    ):
        load_curves([tmp_path], tokens_per_step=10)


def test_one_file_and_compressed_files_are_read_as_a_folder_is(tmp_path: Path) -> None:
    plain = result(tmp_path / "plain", "step5/results_a.json", NEW, model_name="m")
    alone = load_curves([plain], tokens_per_step=10)
    for ending, open_as in ((".gz", gzip.open), (".xz", lzma.open)):
        path = tmp_path / ending / "step5" / f"results_a.json{ending}"
        path.parent.mkdir(parents=True)
        with open_as(path, "wb") as file:
            file.write(plain.read_bytes())
        packed = load_curves([tmp_path / ending], tokens_per_step=10)
        assert packed.series() == alone.series() and packed.curves[0].step_C.tolist() == [5]
        path.write_bytes(path.read_bytes()[:30])
        with pytest.raises(ProbeError, match=rf"cannot be read as {ending}.*Is it whole"):
            load_curves([tmp_path / ending], tokens_per_step=10)


def scored(folder: Path, **scores: Any) -> Path:
    """Two checkpoints of which the second has these scores."""
    result(folder, "step5/results_a.json", {"piqa": {"acc,none": 0.5, "acc_stderr,none": 0.01}}, model_name="m")
    return result(folder, "step6/results_a.json", scores, model_name="m")


@pytest.mark.parametrize("missing", [float("nan"), None])
def test_missing_scores_are_counted_and_the_first_file_is_named(tmp_path: Path, missing: float | None) -> None:
    scored(tmp_path, piqa={"acc,none": missing}, sciq={"acc,none": 0.4}, arc_easy={"acc,none": missing})
    table = load_curves([tmp_path], tokens_per_step=10)
    assert {curve.task: curve.value_C.tolist() for curve in table} == {"piqa": [0.5], "sciq": [0.4]}
    (note,) = table.notes
    assert note == (
        f"{tmp_path}: 2 of 4 rows have no value and are left out (the first is piqa (acc) of m, step6/results_a.json)."
    )


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"acc,none": float("inf")}, r"step6/results_a.json: value=inf of piqa \(acc\) of m is infinite"),
        (
            {"word_perplexity,none": float("inf")},
            r"value=inf of piqa \(word_perplexity\) of m is infinite.*null in JSON",
        ),
        ({"acc,none": 0.5, "acc_stderr,none": float("inf")}, r"stderr=inf of piqa \(acc\) of m is infinite"),
        ({"acc,none": -0.5}, r"step6/results_a.json: value=-0.5 of piqa \(acc\) of m is negative"),
        ({"acc,none": 50.0}, r"value=50 of piqa \(acc\) of m follows 0.5 .*step5/results_a.json.*the unit is percent"),
        ({"f1,none": 400.0}, r"step6/results_a.json: value=400 of piqa \(f1\) of m is above 100 %"),
    ],
)
def test_impossible_scores_are_refused_with_their_file_as_in_a_table(
    tmp_path: Path, metrics: dict[str, float], message: str
) -> None:
    path = scored(tmp_path, piqa=metrics)
    with pytest.raises(ProbeError, match=message):
        load_curves([tmp_path], tokens_per_step=10)
    if "acc,none" not in metrics:
        with pytest.raises(ProbeError, match=r"step6.*results_a.json: value="):
            load_curves([path], tokens_per_step=10)


def test_metrics_that_lm_eval_gives_in_percent_are_read_as_shares_and_it_is_said(tmp_path: Path) -> None:
    """The first score of SQuAD is below 1 %: only the definition tells that it is no share."""
    for step, score in ((1, 0.4), (2, 38.5)):
        scores = {"squadv2": {"f1,none": score, "f1_stderr,none": "N/A"}, "piqa": {"acc,none": 0.6}}
        result(tmp_path, f"step{step}/results_a.json", scores, model_name="m")
    table = load_curves([tmp_path], tokens_per_step=10)
    assert {curve.task: curve.value_C.tolist() for curve in table} == {"squadv2": [0.004, 0.385], "piqa": [0.6, 0.6]}
    (note,) = table.notes
    assert note == (
        f"{tmp_path}: accuracies of squadv2 (f1) of m are in percent; values and standard errors are read as shares."
    )


def test_a_missing_score_gives_way_to_that_of_another_file_of_the_checkpoint(tmp_path: Path) -> None:
    for folder, score in (("a", 0.7), ("b", float("nan"))):
        result(tmp_path, f"{folder}/step5/results_{folder}.json", {"piqa": {"acc,none": score}}, model_name="m")
    table = load_curves([tmp_path], tokens_per_step=10)
    assert [curve.value_C.tolist() for curve in table] == [[0.7]] and table.notes == ()
