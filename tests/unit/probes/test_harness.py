import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.harness import Harness, load_harness
from probes.plan import PlanSettings, RequestTable, compile_plan
from probes.request import SuiteRequests
from probes.suite import Suite, TaskSpec, load_suite
from tests.support.hf_scorer import hf_tokenizer, tiny_llama
from tests.unit.probes.conftest import ALL_TASKS, MULTIPLE_CHOICE, write_task


def one(task: str, **fields: Any) -> Suite:
    return Suite("one", (TaskSpec(task=task, domain="d", **fields),))


def table_of(captured: SuiteRequests, tokenizer: Tokenizer, *, max_length: int = 256) -> RequestTable:
    return compile_plan(captured, tokenizer, PlanSettings(max_length=max_length, add_bos=True)).table


def lm_eval_tasks(task_folder: Path, tmp_path: Path) -> Any:
    """The same tasks for lm-eval alone: a copy whose YAML has the folder written out."""
    from lm_eval.tasks import TaskManager

    for path in task_folder.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text().replace("${TASK_DIR}", str(task_folder)))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def hflm(tokenizer_file: Path, *, add_bos: bool, vocab_size: int, max_length: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=tiny_llama(vocab_size),
        tokenizer=hf_tokenizer(tokenizer_file, add_bos=add_bos),
        batch_size=4,
        max_length=max_length,
        logits_cache=False,  # lm-eval 0.4.13 mis-scores with it, see probes.harness
    )


@pytest.mark.parametrize("add_bos", [False, True])
def test_requests_are_tokenised_exactly_as_hflm_does(
    add_bos: bool, task_folder: Path, tmp_path: Path, suite: Suite, tokenizer: Tokenizer, monkeypatch: Any
):
    from lm_eval import evaluator

    model = hflm(Path(tokenizer.name), add_bos=add_bos, vocab_size=tokenizer.vocab_size, max_length=256)
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def record(requests: Any, **_: Any) -> list[tuple[float, bool]]:
        seen.extend((tuple(context), tuple(continuation)) for _, context, continuation in requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(model, "_loglikelihood_tokens", record)
    manager = lm_eval_tasks(task_folder, tmp_path)
    evaluator.simple_evaluate(model, tasks=list(ALL_TASKS), task_manager=manager, bootstrap_iters=0)
    harness = load_harness(suite, task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=add_bos, max_length=256)
    assert [(request.context, request.continuation) for request in captured.requests] == seen


def test_metrics_equal_those_of_simple_evaluate_with_the_same_answers(
    task_folder: Path, tmp_path: Path, suite: Suite, tokenizer: Tokenizer, monkeypatch: Any
):
    from lm_eval import evaluator

    harness = load_harness(suite, task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    rng = np.random.default_rng(0)
    log_likelihood = -rng.exponential(1.0, len(captured.requests))
    greedy = rng.random(len(captured.requests)) < 0.3
    model = hflm(Path(tokenizer.name), add_bos=True, vocab_size=tokenizer.vocab_size, max_length=256)
    answers = list(zip(log_likelihood.tolist(), greedy.tolist(), strict=True))
    monkeypatch.setattr(model, "_loglikelihood_tokens", lambda requests, **_: answers)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    manager = lm_eval_tasks(task_folder, tmp_path)
    expected = evaluator.simple_evaluate(model, tasks=list(ALL_TASKS), task_manager=manager, bootstrap_iters=1000)
    table = table_of(captured, tokenizer)
    for _ in range(2):  # answering twice must not add up
        found = harness.metrics(table, log_likelihood, greedy)
        assert len(found) == 11
        for value in found:
            results = expected["results"][captured.tasks[value.task].name]
            assert value.value == pytest.approx(results[f"{value.metric},none"], rel=1e-12)
            # lm-eval bootstraps perplexity: 1,000 resamples of 12 skewed items agree to a third at best
            tolerance = 0.35 if value.metric == "perplexity" else 1e-9
            assert value.stderr == pytest.approx(results[f"{value.metric}_stderr,none"], rel=tolerance)


def test_gold_answers_and_lengths_are_known_for_every_kind_of_task(
    task_folder: Path, suite: Suite, tokenizer: Tokenizer
):
    captured = load_harness(suite, task_paths=[task_folder]).capture(tokenizer, add_bos=False, max_length=256)
    for index, task in enumerate(captured.tasks):
        requests = [request for request in captured.requests if request.task == index]
        assert sum(request.is_gold for request in requests) == task.num_items
        assert all(request.is_choice for request in requests)
    assert [task.num_fewshot for task in captured.tasks] == [0, 2, 0, 0, 0, 0]
    golds = [request.choice for request in captured.requests if request.task == 5 and request.is_gold]
    assert golds == [number % 2 for number in range(10)]


def test_the_limit_is_the_smaller_of_suite_and_config(task_folder: Path, tokenizer: Tokenizer):
    for suite_limit, limit, expected in ((5, None, 5), (None, 7, 7), (5, 3, 3), (3, 5, 3)):
        harness = load_harness(one("t_choice", limit=suite_limit), task_paths=[task_folder], limit=limit)
        assert harness.capture(tokenizer, add_bos=False, max_length=64).tasks[0].num_items == expected


def test_the_suite_sets_the_number_of_shots(task_folder: Path, tokenizer: Tokenizer):
    harness = load_harness(one("t_choice", num_fewshot=3), task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=False, max_length=512)
    assert captured.tasks[0].num_fewshot == 3
    assert harness.tasks[0].task.instances[0].args[0].count("Question:") == 4


def test_shots_for_a_task_that_fixes_none_are_refused(tmp_path: Path):
    item = {"question": "q", "choices": ["a", "b"], "gold": 0}
    write_task(tmp_path, "fixed", [item], {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}", "num_fewshot": 0})
    with pytest.raises(ProbeError, match="fixed fixes num_fewshot at 0"):
        load_harness(one("fixed", num_fewshot=5), task_paths=[tmp_path])


def test_an_unknown_task_is_answered_with_the_nearest_names(task_folder: Path):
    with pytest.raises(ProbeError, match="'t_choise'.*Did you mean t_choice"):
        load_harness(one("t_choise"), task_paths=[task_folder])


def test_a_folder_of_tasks_that_is_not_there_is_named():
    with pytest.raises(ProbeError, match="probe.task_paths=nowhere"):
        load_harness(one("t_choice"), task_paths=["nowhere"])


def test_a_task_with_images_is_refused_by_name(tmp_path: Path):
    definition = {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{question}}"}
    write_task(tmp_path, "other", [{"question": "q"}], {**definition, "doc_to_image": "question"})
    with pytest.raises(ProbeError, match="Task other has images or sound"):
        load_harness(one("other"), task_paths=[tmp_path])


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("t_word", {"ppl": True}, "t_word has output_type loglikelihood, but the suite asks for ppl"),
        ("t_text", {"num_fewshot": 2}, "t_text scores texts without a prompt"),
    ],
)
def test_what_a_task_cannot_give_is_refused_by_name(task_folder: Path, task: str, fields: Any, message: str):
    with pytest.raises(ProbeError, match=message):
        load_harness(one(task, **fields), task_paths=[task_folder])


def test_a_task_whose_data_are_missing_is_named_with_the_cause(tmp_path: Path):
    write_task(tmp_path, "gone", [{"question": "q"}], {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(ProbeError, match=r"(?s)Task gone of .*gone.yaml cannot be loaded: .*gone.jsonl is not there"):
        load_harness(one("gone"), task_paths=[tmp_path])


def test_a_prompt_that_cannot_be_rendered_is_named(tmp_path: Path):
    items = [{"question": "q", "choices": ["a", "b"], "gold": 0}, {"question": "q", "choices": ["a"], "gold": None}]
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "{{question + choices[1]}}"}
    write_task(tmp_path, "broken", items, definition)
    with pytest.raises(ProbeError, match="Prompts of task broken cannot be built with 0 examples: item 1"):
        load_harness(one("broken"), task_paths=[tmp_path])


def test_items_with_an_empty_or_overlong_answer_are_skipped_by_name(tmp_path: Path, tokenizer: Tokenizer):
    items = [
        {"question": "the cat", "choices": ["the dog", "runs"], "gold": 0},
        {"question": "the cat", "choices": ["the dog", ""], "gold": 0},
        {"question": "", "choices": ["", "dog"], "gold": 0},
        {"question": "the cat", "choices": ["the dog " * 40, "runs"], "gold": 0},
    ]
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}", "target_delimiter": ""}
    write_task(tmp_path, "holes", items, definition)
    harness = load_harness(one("holes"), task_paths=[tmp_path])
    captured = harness.capture(tokenizer, add_bos=False, max_length=32)
    assert captured.tasks[0].num_items == 1
    assert [text.split(":")[0] for text in captured.skipped] == [f"holes, item {number}" for number in (1, 2, 3)]
    assert "continuation 1 is empty" in captured.skipped[0] and "limit is 32" in captured.skipped[2]
    table = table_of(captured, tokenizer, max_length=32)
    found = harness.metrics(table, np.array([-1.0, -2.0]), np.array([False, False]))
    assert {(value.metric, value.value, value.num_items) for value in found} == {("acc", 1.0, 1), ("acc_norm", 1.0, 1)}


def test_a_task_with_nothing_left_to_score_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    item = {"question": "the cat", "choices": ["the dog " * 40, "runs"], "gold": 0}
    write_task(tmp_path, "empty", [item], {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    with pytest.raises(ProbeError, match="Task empty has no item that can be scored"):
        load_harness(one("empty"), task_paths=[tmp_path]).capture(tokenizer, add_bos=False, max_length=32)


def test_a_group_becomes_its_tasks(task_folder: Path, tmp_path: Path, tokenizer: Tokenizer):
    lm_eval_tasks(task_folder, tmp_path)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [t_choice, t_word]\n")
    captured = load_harness(one("both"), task_paths=[tmp_path]).capture(tokenizer, add_bos=False, max_length=256)
    assert [(task.name, task.domain) for task in captured.tasks] == [("t_choice", "d"), ("t_word", "d")]
    twice = Suite("twice", (TaskSpec(task="both", domain="d"), TaskSpec(task="t_word", domain="d")))
    with pytest.raises(ProbeError, match="t_word more than once"):
        load_harness(twice, task_paths=[tmp_path])


def test_the_first_folder_wins_over_later_ones_and_the_bundled_tasks(tmp_path: Path, tokenizer: Tokenizer):
    for number, folder in enumerate((tmp_path / "first", tmp_path / "second"), start=1):
        items = [{"question": "q", "choices": ["a", "b"], "gold": 0}] * number
        write_task(folder, "fineline_piqa", items, {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})
    harness = load_harness(one("fineline_piqa"), task_paths=[tmp_path / "first", tmp_path / "second"])
    assert harness.capture(tokenizer, add_bos=False, max_length=32).tasks[0].num_items == 1


def test_random_state_is_left_as_it_was(task_folder: Path, suite: Suite, tokenizer: Tokenizer):
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    harness = load_harness(suite, task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=False, max_length=256)
    table = table_of(captured, tokenizer)
    harness.metrics(table, np.zeros(len(captured.requests)), np.zeros(len(captured.requests), bool))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_the_wrong_number_of_answers_is_an_error(task_folder: Path, tokenizer: Tokenizer):
    harness: Harness = load_harness(one("t_choice"), task_paths=[task_folder])
    table = table_of(harness.capture(tokenizer, add_bos=False, max_length=256), tokenizer)
    with pytest.raises(ProbeError, match="3 answers to the 80 requests"):
        harness.metrics(table, np.zeros(3), np.zeros(3, bool))


def test_every_bundled_task_loads_and_is_scorable_at_the_demo_length(tokenizer: Tokenizer):
    captured = load_harness(load_suite("demo"), limit=20).capture(tokenizer, add_bos=False, max_length=1024)
    assert not captured.skipped
    assert {task.num_items for task in captured.tasks} == {20}


def test_loading_offline_writes_nothing_outside_a_temporary_folder(tmp_path: Path, task_folder: Path):
    # A home that is a file: every attempt to write below it fails.
    home = tmp_path / "home"
    home.write_text("")
    program = (
        "import sys; from probes.harness import load_harness; from probes.suite import Suite, TaskSpec\n"
        "suite = Suite('s', (TaskSpec(task='t_word', domain='d'),))\n"
        "print(len(load_harness(suite, task_paths=[sys.argv[1]]).tasks[0].task.instances))"
    )
    environment = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", program, str(task_folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "12"
    assert result.stderr == ""


def test_lm_eval_is_imported_by_few_files_and_only_when_needed():
    package = Path(__file__).parents[3] / "probes"
    importing = {p.name for p in package.rglob("*.py") if "from lm_eval" in p.read_text()}
    assert importing == {"harness.py", "finder.py", "task_data.py", "templates.py", "encode.py", "lm_eval_metrics.py"}
    program = "import sys, probes.hook, probes.score; print({'lm_eval', 'torch', 'datasets'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "set()\n"
