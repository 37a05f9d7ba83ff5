"""Small lm-eval tasks of every kind we score, a SentencePiece model, and a tiny LLaMA."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from probes.beside import Settings
from probes.examiner import Examiner
from probes.suite import Suite, TaskSpec
from tests.unit.probes.watched_run import FakeRun

TEXT = "the cat dog sees a small red house and runs home quickly because rain falls on old grey stones"
WORDS = TEXT.split()
MULTIPLE_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


def sentence(rnd: random.Random, low: int = 3, high: int = 12) -> str:
    return " ".join(rnd.choice(WORDS) for _ in range(rnd.randint(low, high)))


def write_task(folder: Path, name: str, items: list[dict[str, Any]], definition: dict[str, Any]) -> None:
    """Writes NAME.yaml and NAME.jsonl; the YAML names its data by ${TASK_DIR}."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "${TASK_DIR}/" + name + ".jsonl"}},
        "validation_split": "validation",
        **definition,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks: t_choice, t_word, t_pairs (no context), t_blank (choices in the context), t_shots, t_spaces, and more."""
    folder = tmp_path_factory.mktemp("tasks")
    rnd = random.Random(1)
    choice = [
        {"question": sentence(rnd), "choices": [sentence(rnd, 1, 5) for _ in range(4)], "gold": rnd.randrange(4)}
        for _ in range(20)
    ]
    choice[3]["choices"][1] = choice[3]["choices"][0]  # two equal answers
    choice[4]["choices"][0] = choice[4]["choices"][1] + " and"  # one answer begins another
    asked = {**MULTIPLE_CHOICE, "doc_to_text": "Question: {{question}}\nAnswer:"}
    write_task(folder, "t_choice", choice, asked)
    write_task(folder, "t_shots", choice, {**asked, "num_fewshot": 2, "fewshot_split": "validation"})
    write_task(folder, "t_spaces", choice, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}  ", "target_delimiter": ""})
    words = [{"text": sentence(rnd, 4, 20)} for _ in range(12)]
    write_task(
        folder,
        "t_word",
        words,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        },
    )
    pairs = [{"good": sentence(rnd), "bad": sentence(rnd)} for _ in range(30)]
    two = {**MULTIPLE_CHOICE, "doc_to_text": "", "doc_to_target": 0, "doc_to_choice": "{{[good, bad]}}"}
    write_task(folder, "t_pairs", pairs, two)
    blank = [
        {"start": sentence(rnd), "options": [sentence(rnd, 1, 2), "big"], "end": sentence(rnd), "gold": number % 2}
        for number in range(10)
    ]
    write_task(
        folder,
        "t_blank",
        blank,
        {
            **MULTIPLE_CHOICE,
            "doc_to_text": "{{gold}}",
            "doc_to_target": "{{end}}",
            "doc_to_choice": "{{[start + ' ' + options[0], start + ' ' + options[1]]}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    )
    _write_texts(folder, rnd)
    _write_generative(folder, rnd)
    _write_own_metrics(folder, rnd)
    return folder


def _write_texts(folder: Path, rnd: random.Random) -> None:
    """t_text, whole texts: some shorter than a window of 24 tokens, some much longer."""
    texts = [{"page": "\n".join(sentence(rnd) for _ in range(rnd.randint(1, 9)))} for _ in range(8)]
    metrics = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    definition = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}"}
    write_task(folder, "t_text", texts, {**definition, "metric_list": metrics})


def _write_generative(folder: Path, rnd: random.Random) -> None:
    """t_solve, one answer each; t_recall, several accepted ones, and none for item 2; t_program, with its test."""
    generated = {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    solve = [{"question": sentence(rnd), "answer": sentence(rnd)} for _ in range(9)]
    write_task(folder, "t_solve", solve, {**generated, "doc_to_target": "{{answer}}", "num_fewshot": 1})
    recall = [{"question": sentence(rnd), "answer": [sentence(rnd, 1, 3), "cat", "dog"]} for _ in range(6)]
    recall[2]["answer"] = []
    write_task(folder, "t_recall", recall, {**generated, "doc_to_target": "answer"})
    program = [{"question": sentence(rnd), "canonical_solution": sentence(rnd), "test": "cat"} for _ in range(4)]
    write_task(folder, "t_program", program, {**generated, "doc_to_target": "{{test}}", "unsafe_code": True})


def _write_own_metrics(folder: Path, rnd: random.Random) -> None:
    """t_every, all of lm-eval's metrics for choices; t_sets, a set of right ones, scored as TruthfulQA's mc2."""
    choice = [
        {"question": sentence(rnd), "choices": [sentence(rnd, 1, 4) for _ in range(2)], "gold": rnd.randrange(2)}
        for _ in range(24)
    ]
    names = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score")
    own = {"f1": "f1", "mcc": "matthews_corrcoef", "brier_score": "brier_score"}
    metrics = [{"metric": name, "aggregation": own.get(name, "mean"), "higher_is_better": True} for name in names]
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "Question: {{question}}\nAnswer:", "metric_list": metrics}
    write_task(folder, "t_every", choice, definition)
    sets = []
    for _ in range(14):
        labels = [1, 0] + [rnd.randrange(2) for _ in range(rnd.randint(0, 4))]
        rnd.shuffle(labels)
        targets = {"choices": [sentence(rnd, 1, 6) for _ in labels], "labels": labels}
        sets.append({"question": sentence(rnd), "mc2_targets": targets})
    definition = {
        **MULTIPLE_CHOICE,
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": 0,
        "doc_to_choice": "{{mc2_targets.choices}}",
        "metric_list": MULTIPLE_CHOICE["metric_list"][:1],
    }
    write_task(folder, "t_sets", sets, definition)
    (folder / "mc2.py").write_text(
        "import numpy as np\n"
        "def process_results(doc, results):\n"
        "    p = np.exp(np.array([ll for ll, _ in results]))\n"
        "    return {'acc': np.sum((p / np.sum(p))[np.array(doc['mc2_targets']['labels']) == 1])}\n"
    )
    with (folder / "t_sets.yaml").open("a") as file:
        file.write("process_results: !function mc2.process_results\n")


ALL_TASKS = ("t_choice", "t_shots", "t_spaces", "t_word", "t_pairs", "t_blank")


MORE_TASKS = ("t_text", "t_every", "t_sets")
"""Scored by lm-eval without generating; beside t_solve, t_recall and t_program, which are not."""


@pytest.fixture(scope="session")
def suite() -> Suite:
    domains = {"t_word": "language", "t_pairs": "language"}
    return Suite("small", tuple(TaskSpec(task=name, domain=domains.get(name, "choice")) for name in ALL_TASKS))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    rnd = random.Random(2)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer((sentence(rnd) + "\nQuestion: Answer:" for _ in range(200)), path, vocab_size=340)


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "two.yaml"
    path.write_text("tasks:\n- {task: t_word, domain: language}\n- {task: t_blank, domain: choice}\n")
    return path


@pytest.fixture(scope="module")
def examiner(suite_file: Path, task_folder: Path, tokenizer: Tokenizer) -> Examiner:
    settings = Settings(suite=str(suite_file), task_paths=[str(task_folder)], tokens_per_row=128)
    return Examiner(settings, tokenizer, max_length=256, add_bos=False, cache=suite_file.parent / "plans")


@pytest.fixture
def run(tmp_path: Path, examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    return FakeRun(tmp_path / "run", examiner, monkeypatch)
