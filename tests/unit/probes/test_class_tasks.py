"""Tasks that are Python classes (lm-eval's squadv2, scrolls, …): their data, their mixed requests, their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.__main__ import main
from probes.generate import generate_texts
from probes.harness import load_harness, restore_harness
from probes.local_data import read_split
from probes.plan import Plan, PlanSettings, compile_plan
from probes.score import CheckpointFacts, gather_answers, measure
from probes.suite import Suite, TaskSpec, load_suite
from tests.support.hf_scorer import HuggingFaceScorer
from tests.unit.probes.conftest import WORDS
from tests.unit.probes.test_generate import PlainGenerator
from tests.unit.probes.test_harness import hflm
from tests.unit.probes.test_local_data import write_jsonl

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
CONTEXT = 96


def questions(first: int, number: int) -> list[dict[str, Any]]:
    """Items of SQuAD 2: every third one has no answer."""
    return [
        {
            "id": str(n),
            "title": WORDS[n % len(WORDS)],
            "context": " ".join(WORDS[n % 7 : n % 7 + 6]),
            "question": f"the {WORDS[n % 5]} sees",
            "answers": {"text": [] if n % 3 == 2 else [WORDS[n % 11], "cat"], "answer_start": [0]},
        }
        for n in range(first, first + number)
    ]


OWN = """
from lm_eval.api.metrics import mean
from lm_eval.tasks.squadv2.task import SQuAD2

class Own(SQuAD2):
    # SQuAD 2 with short answers, and with metrics that need nothing from the hub.
    def construct_requests(self, doc, ctx, **kwargs):
        requests = super().construct_requests(doc, ctx, **kwargs)
        requests[0].arguments[1].update(max_gen_toks=8)
        return requests

    def process_results(self, doc, results):
        text, (log_likelihood, greedy) = results
        return {"length": len(text), "no_answer": log_likelihood}

    def aggregation(self):
        return {"length": mean, "no_answer": mean}

    def higher_is_better(self):
        return {"length": True, "no_answer": True}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the task `own`, whose data `load_dataset` gives from memory."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own_class.py").write_text(OWN)
    (folder / "own.yaml").write_text("task: own\nclass: !function own_class.Own\n")
    splits = {"train": questions(20, 6), "validation": questions(0, 7)}

    def from_memory(path: str, **_: Any) -> datasets.DatasetDict:
        assert path == "lighteval/squad_v2"
        return datasets.DatasetDict({name: datasets.Dataset.from_list(items) for name, items in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", from_memory)
    return folder


def one(task: str, **fields: Any) -> Suite:
    return Suite("one", (TaskSpec(task=task, domain="d", **fields),))


def test_items_with_two_kinds_of_requests_score_as_in_lm_eval(own: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    model = hflm(Path(tokenizer.name), add_bos=True, vocab_size=tokenizer.vocab_size, max_length=CONTEXT)
    model.batch_size_per_gpu = 1  # in a batch HFLM goes on after a stop string, which then may decode otherwise
    theirs = evaluator.simple_evaluate(
        model,
        tasks=["own"],
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
        bootstrap_iters=0,
    )["results"]["own"]
    harness = load_harness(one("own", generate=True), task_paths=[own])
    captured = harness.capture(tokenizer, add_bos=True, max_length=CONTEXT)
    assert not captured.skipped and captured.tasks[0].num_items == 7
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=CONTEXT, add_bos=True))
    plan.save(tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    answers = gather_answers(plan, HuggingFaceScorer(model.model).score(plan.rows))
    texts = generate_texts(plan.stored, tokenizer, PlainGenerator(model.model)).texts
    for tasks in (harness, restore_harness(plan.stored, task_paths=[own])):
        rows = measure(plan, answers, tasks, FACTS, seconds=1.0, texts=texts)
        found = {row.metric: row.value for row in rows if row.task == "own"}
        assert found["length"] == theirs["length,none"]
        # Hugging Face's RMSNorm and rotary tables stay in fp32, see test_equivalence
        assert found["no_answer"] == pytest.approx(theirs["no_answer,none"], rel=1e-5)


def test_without_generation_such_items_give_continuous_metrics_of_their_gold_answers(
    own: Path, tokenizer: Tokenizer
) -> None:
    harness = load_harness(one("own"), task_paths=[own])
    captured = harness.capture(tokenizer, add_bos=True, max_length=CONTEXT)
    assert captured.tasks[0].not_computed == "length, no_answer"
    kinds: Sequence[tuple[int, bool, bool]] = [(r.choice, r.is_choice, r.is_gold) for r in captured.requests]
    assert kinds == [(0, True, True), (1, False, False)] * 7
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=CONTEXT, add_bos=True))
    assert plan.chance() == {}
    log_likelihood = -np.arange(1.0, 15.0)
    found = {value.metric for value in harness.metrics(plan.table, log_likelihood, log_likelihood > 0)}
    assert found == set()


def fields_of(number: int, name: str) -> list[dict[str, Any]]:
    """Items of fda, swde and squad_completion."""
    return [{"text": f"{name} {' '.join(WORDS[n : n + 5])}:", "value": f" {WORDS[n]} "} for n in range(number)]


CLASSES = {
    "squadv2": ("lighteval/squad_v2", questions(0, 5)),
    "squad_completion": ("hazyresearch/based-squad", fields_of(4, "squad")),
    "fda": ("hazyresearch/based-fda", fields_of(5, "fda")),
    "swde": ("hazyresearch/based-swde-v2", fields_of(3, "swde")),
}
"""lm-eval's own tasks that are classes: the path of their data set, and items in its form."""


def of_suite(names: Sequence[str]) -> Suite:
    return Suite("classes", tuple(TaskSpec(task=name, domain="d") for name in names))


def test_tasks_that_are_classes_read_their_data_from_the_folder(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (path, items) in CLASSES.items():
        write_jsonl(tmp_path / path / "default" / "validation.jsonl", items)
        if name == "squadv2":
            write_jsonl(tmp_path / path / "default" / "train.jsonl.gz", questions(10, 3))
    harness = load_harness(of_suite(list(CLASSES)), data_dir=tmp_path)

    def from_memory(path: str, **_: Any) -> datasets.DatasetDict:
        items = dict(CLASSES.values())[path]
        return datasets.DatasetDict({name: datasets.Dataset.from_list(items) for name in ("train", "validation")})

    monkeypatch.setattr(datasets, "load_dataset", from_memory)
    for task in harness.tasks:
        expected = type(task.task)()
        expected.set_config("num_fewshot", 0)
        expected.build_all_requests()
        assert [i.args for i in task.task.instances] == [i.args for i in expected.instances]
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    assert [task.num_items for task in captured.tasks] == [5, 4, 5, 3]
    assert [task.name for task in restore_harness(captured.stored).tasks] == list(CLASSES)


def test_a_split_that_a_class_has_not_in_its_folder_is_named_where_it_is_needed(tmp_path: Path) -> None:
    path, items = CLASSES["squadv2"]
    folder = tmp_path / path / "default"
    write_jsonl(folder / "train.jsonl", items)
    with pytest.raises(ProbeError, match="Task squadv2 needs split 'validation', but .*default has train only"):
        load_harness(one("squadv2"), data_dir=tmp_path)
    (folder / "train.jsonl").rename(folder / "validation.jsonl")
    assert len(load_harness(one("squadv2"), data_dir=tmp_path).tasks[0].task.instances) == 10
    with pytest.raises(ProbeError, match="draws its 2 examples from split 'train', which .*default has not"):
        load_harness(one("squadv2", num_fewshot=2), data_dir=tmp_path)


OUTLINES = """
from datasets import load_dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

class Outlines(ConfigurableTask):
    # As SCROLLS: a download of its own, which changes what it has read.
    VERSION = 1
    DATASET_PATH = "org/outlines"
    DATASET_NAME = "short"

    def __init__(self, config=None):
        super().__init__(config={"metadata": {"version": self.VERSION}})

    def download(self, *arguments, **options):
        files = {name: f"FOLDER/{name}.jsonl" for name in ("train", "validation")}
        self.dataset = load_dataset("json", data_files=files)
        for split in self.dataset:
            self.dataset[split] = self.dataset[split].filter(lambda row: row["keep"])

    def has_training_docs(self):
        return True

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def training_docs(self):
        return self.dataset["train"]

    def validation_docs(self):
        return self.dataset["validation"]

    def doc_to_text(self, doc, *_):
        return doc["question"]

    def doc_to_target(self, doc, *_):
        return doc["choices"][doc["gold"]]

    def construct_requests(self, doc, ctx, **kwargs):
        from lm_eval.api.instance import Instance
        for name in ("apply_chat_template", "chat_template"):
            kwargs.pop(name, None)
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, f" {choice}"), idx=number, **kwargs)
            for number, choice in enumerate(doc["choices"])
        ]

    def process_results(self, doc, results):
        best = max(range(len(results)), key=lambda number: results[number][0])
        return {"acc": float(best == doc["gold"])}

    def aggregation(self):
        return {"acc": mean}

    def higher_is_better(self):
        return {"acc": True}
"""


def test_what_a_class_downloads_itself_is_fetched_once_and_changed_by_the_class_each_time(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"question": f"{n}", "choices": ["cat", "dog", "house"], "gold": n % 3, "keep": n != 1} for n in range(5)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "hub" / f"{split}.jsonl", items)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "outlines.py").write_text(OUTLINES.replace("FOLDER", str(tmp_path / "hub")))
    (tasks / "outlines.yaml").write_text("task: outlines\nclass: !function outlines.Outlines\n")
    suite = tmp_path / "s.yaml"
    suite.write_text("tasks: [{task: outlines, domain: d, num_fewshot: 1}]\n")
    words = ["prefetch", f"suite={suite}", f"data_dir={tmp_path / 'data'}", f"task_paths=[{tasks}]"]
    assert main(words) == 0
    folder = tmp_path / "data" / "org" / "outlines" / "short"
    assert f"outlines: train, validation of org/outlines to {folder}" in capsys.readouterr().out
    assert [len(read_split(folder / f"{split}.parquet")) for split in ("train", "validation")] == [5, 5]
    (tmp_path / "hub" / "train.jsonl").unlink()
    assert main(words) == 0  # the folder has all of it
    assert f"org/outlines is in {folder}" in capsys.readouterr().out
    harness = load_harness(load_suite(suite), task_paths=[tasks], data_dir=tmp_path / "data")
    captured = harness.capture(tokenizer, add_bos=True, max_length=64)
    facts = captured.tasks[0]
    assert (facts.num_items, facts.num_fewshot, facts.output_type) == (4, 1, "multiple_choice")
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=64, add_bos=True))
    assert plan.chance() == {"outlines": pytest.approx(1 / 3)}
    right = np.where(plan.table.is_gold_R, -1.0, -2.0)
    (acc,) = harness.metrics(plan.table, right, right > -1.5)
    assert (acc.metric, acc.value, acc.num_items) == ("acc", 1.0, 4)
