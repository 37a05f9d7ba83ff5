from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from probes.dynamics.guessing import LM_EVAL_CHOICES, chance_by_name
from probes.dynamics.tasks import chance_of
from tests.support.eval_data import eval_source, missing_reason
from tests.support.lm_eval_choices import choices_of_tasks, lm_eval_folder, rows, text_of


@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("mmlu_pro", 0.10),
        ("mmlu_pro_biology", 0.10),
        ("math_qa", 0.20),
        ("mathqa", 0.20),
        ("gpqa", 0.25),
        ("gpqa_diamond_zeroshot", 0.25),
        ("medmcqa", 0.25),
        ("headqa_en", 0.25),
        ("swag", 0.25),
        ("sst2", 0.50),
        ("logi_qa", 0.25),
        ("mnli_mismatch", 1 / 3),
        ("agieval_lsat_ar", 0.20),
        ("agieval_sat_en", 0.25),
        ("bbh_cot_fewshot_navigate", 0.50),
        ("leaderboard_bbh_snarks", 0.50),
        ("crows_pairs_english_age", 0.50),
        ("xnli_de", 1 / 3),
        ("paws_de", 0.50),
        ("blimp_anaphor_gender_agreement", 0.50),
        ("fineline_sciq", 0.25),
        ("hellaswag_zeroshot", 0.25),
        ("jeopardy", 0.0),
        ("math", 0.0),
    ],
)
def test_the_score_of_guessing_is_known_of_the_tasks_that_people_run(name: str, chance: float) -> None:
    assert chance_of(name, "acc") == pytest.approx(chance)
    assert chance_of(name, "exact_match,strict-match") == pytest.approx(chance)


def test_what_only_begins_like_a_known_task_is_another() -> None:
    assert math.isnan(chance_of("record", "em")) and math.isnan(chance_of("recorder", "acc"))
    assert math.isnan(chance_of("mmlu_redux_anatomy_generative", "exact_match"))


EVALS = eval_source() or Path()
needs_items = pytest.mark.skipif(eval_source() is None, reason=missing_reason())


@needs_items
def test_truthfulqa_has_the_chance_of_its_metric() -> None:
    first, second = [], []
    with gzip.open(EVALS / "truthfulqa.gen.jsonl.gz", "rt") as file:
        for item in map(json.loads, file):
            right, wrong = (
                sum(bool(one.strip()) for one in item[key].split(";"))
                for key in ("Correct Answers", "Incorrect Answers")
            )
            first.append(1 / (1 + wrong))
            second.append(right / (right + wrong))
    assert chance_of("truthfulqa_mc1", "acc") == pytest.approx(np.mean(first), abs=5e-4)
    assert chance_of("truthfulqa_mc", "mc2") == pytest.approx(np.mean(second), abs=5e-4)
    assert chance_of("truthfulqa_mc2", "acc") == pytest.approx(np.mean(second), abs=5e-4)  # lm-eval's name of mc2


DATA = {
    "arc_challenge.test": "arc_challenge",
    "arc_easy.test": "arc_easy",
    "blimp": "blimp",
    "boolq.val": "boolq",
    "cb.val": "cb",
    "ceval.val": "ceval-valid_law",
    "cmmlu.dev": "cmmlu",
    "commonsenseqa.val": "commonsense_qa",
    "copa.val": "copa",
    "hellaswag.val": "hellaswag",
    "mmlu.val": "mmlu",
    "openbookqa.test": "openbookqa",
    "piqa.val": "piqa",
    "rte.val": "rte",
    "sciq.test": "sciq",
    "siqa.val": "social_iqa",
    "wic.val": "wic",
    "winogrande.val": "winogrande",
    "wsc.val": "wsc",
}


@needs_items
@pytest.mark.parametrize("data", DATA)
def test_the_score_of_guessing_is_what_the_items_give(data: str) -> None:
    with gzip.open(EVALS / f"{data}.jsonl.gz", "rt") as file:
        given = np.mean([1 / len(json.loads(line)["choices"]) for line in file])
    assert chance_of(DATA[data], "acc") == pytest.approx(given, abs=5e-4)  # a few items of ARC have three or five


def _folders(*names: str) -> list[Path]:
    return [lm_eval_folder() / name for name in names]


def test_choices_are_counted_in_the_definitions_of_lm_eval() -> None:
    folders = _folders(
        "swag", "mathqa", "glue/sst2", "glue/mnli", "super_glue/cb", "medmcqa", "anli", "lambada", "sciq"
    )
    counted, _ = choices_of_tasks(folders)
    assert {name: counted[name] for name in ("swag", "sst2", "mnli", "cb", "medmcqa", "anli_r3", "sciq")} == {
        "swag": 4,
        "sst2": 2,
        "mnli": 3,
        "cb": 3,
        "medmcqa": 4,
        "anli_r3": 3,
        "sciq": 4,
    }
    assert counted["mathqa"] is None and counted["lambada_openai"] == 0  # in the data; none to choose from
    for name, count in counted.items():
        if count is not None:
            assert chance_by_name(name) == pytest.approx(1 / count if count else 0.0), name


@pytest.mark.slow
def test_the_table_of_choices_is_that_of_the_installed_lm_eval() -> None:
    counted, groups = choices_of_tasks([lm_eval_folder()])
    assert LM_EVAL_CHOICES.read_text() == text_of(rows(counted, groups)), "python -m tests.support.lm_eval_choices"
    known = {name: count for name, count in counted.items() if count is not None}
    assert len(known) > 6_000
    wrong = {name: count for name, count in known.items() if chance_by_name(name) != (1 / count if count else 0.0)}
    # Written facts that know better: lists of letters of which items use some.
    assert not {name for name in wrong if not name.startswith("leaderboard_bbh")}, wrong
