"""Generated answers are those of lm-eval's HFLM, and so are their scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import GenerationRequest
from pretrain.errors import ProbeError
from probes.generate import cut, decode, generate_texts
from probes.harness import load_harness, restore_harness
from probes.hook import ProbeHook
from probes.plan import Plan, PlanSettings, compile_plan
from probes.score import CheckpointFacts, gather_answers, measure
from probes.store import load_measurements
from probes.suite import Suite, TaskSpec
from tests.support.hf_scorer import HuggingFaceScorer, hf_tokenizer, tiny_llama
from tests.unit.probes.conftest import MULTIPLE_CHOICE, sentence, write_task
from tests.unit.probes.test_harness import hflm, lm_eval_tasks
from tests.unit.probes.test_hook import make_run, save_at
from tests.unit.probes.test_tiers import tiered

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
CONTEXT = 48
NEW_TOKENS = 24


class PlainGenerator:
    """Implements `pretrain.engine.base.Generator`: the whole text through a Hugging Face model for each token."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: GenerationRequest) -> list[int]:
        ids: list[int] = []
        while len(ids) < request.max_new_tokens:
            with torch.no_grad():
                logits = self.model(torch.tensor([[*request.prompt, *ids]])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] in request.stop_ids or (request.is_done is not None and request.is_done(ids)):
                break
        return ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """g_lines ends at a letter or a newline; g_open runs to its end; g_wild draws; g_code runs programs."""
    rnd = random.Random(5)
    items = [{"question": sentence(rnd, 2, 30), "answer": sentence(rnd, 1, 2)} for _ in range(8)]
    generated = {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    limits = {"max_gen_toks": NEW_TOKENS, "do_sample": False}
    write_task(tmp_path, "g_lines", items, {**generated, "generation_kwargs": {"until": ["\n", "a", "old"], **limits}})
    write_task(tmp_path, "g_open", items, {**generated, "generation_kwargs": {"until": ["no such text"], **limits}})
    wild = {"until": ["\n"], "do_sample": True, "temperature": 0.7, "max_gen_toks": NEW_TOKENS}
    write_task(tmp_path, "g_wild", items, {**generated, "generation_kwargs": wild})
    code = [{"question": sentence(rnd), "canonical_solution": "x = 1", "test": "assert x == 1"} for _ in range(3)]
    definition = {**generated, "doc_to_text": "{{question}}", "doc_to_target": "{{test}}", "unsafe_code": True}
    del definition["metric_list"]
    write_task(tmp_path, "g_code", code, {**definition, "generation_kwargs": {"until": ["\n"], **limits}})
    with (tmp_path / "g_code.yaml").open("a") as file:
        file.write("metric_list:\n  - metric: !function g_code_metric.pass_at_1\n    aggregation: mean\n")
    (tmp_path / "g_code_metric.py").write_text(
        "import evaluate\n"
        "code_eval = evaluate.load('code_eval')\n"
        "def pass_at_1(references, predictions):\n"
        "    return code_eval.compute(references=references, predictions=[predictions], k=[1])[0]['pass@1']\n"
    )
    return tmp_path


def suite_of(*names: str, **fields: Any) -> Suite:
    return Suite("g", tuple(TaskSpec(task=name, domain="d", generate=True, **fields) for name in names))


@pytest.mark.parametrize("add_bos", [pytest.param(False, marks=pytest.mark.slow), True])
def test_texts_and_scores_equal_those_of_lm_eval_with_the_same_model(
    add_bos: bool, folder: Path, tmp_path_factory: Any, tokenizer: Tokenizer, monkeypatch: Any
):
    from lm_eval import evaluator

    names = ("g_lines", "g_open")
    model = hflm(Path(tokenizer.name), add_bos=add_bos, vocab_size=tokenizer.vocab_size, max_length=CONTEXT)
    manager = lm_eval_tasks(folder, tmp_path_factory.mktemp("copies"))
    options: dict[str, Any] = {"tasks": list(names), "task_manager": manager, "bootstrap_iters": 0}
    theirs = evaluator.simple_evaluate(model, **options, log_samples=True)
    harness = load_harness(suite_of(*names), task_paths=[folder])
    captured = harness.capture(tokenizer, add_bos=add_bos, max_length=CONTEXT)
    assert not captured.skipped and all(task.not_computed == "" for task in captured.tasks)
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=CONTEXT, add_bos=add_bos))
    plan.save(folder / "plan")
    stored = Plan.load(folder / "plan").stored
    prompts = [prompt for task in stored.tasks for prompt in task.prompts]
    assert max(map(len, prompts)) == CONTEXT - NEW_TOKENS > min(map(len, prompts))  # some were cut, some not
    generated = generate_texts(stored, tokenizer, PlainGenerator(model.model))
    for index, name in enumerate(names):
        expected = [sample["resps"][0][0] for sample in theirs["samples"][name]]
        assert generated.texts[index] == expected
        assert len(set(expected)) > 4
    wanted = {name: theirs["results"][name]["exact_match,none"] for name in names}
    found = {value.task: value for value in harness.generated_metrics(generated.texts)}
    assert {names[task]: value.value for task, value in found.items()} == wanted
    again = restore_harness(stored, task_paths=[folder]).generated_metrics(generated.texts)
    assert again == list(found.values())


def test_answers_are_written_for_items_whose_reference_cannot_be_scored(
    folder: Path, tmp_path_factory: Any, tokenizer: Tokenizer, monkeypatch: Any
):
    from lm_eval import evaluator

    rnd = random.Random(6)
    answers = [" ".join([sentence(rnd)] * 12), "", *(sentence(rnd, 1, 2) for _ in range(18))]  # far too long; none
    items = [{"question": sentence(rnd, 2, 5), "answer": answer} for answer in answers]
    definition = yaml.safe_load((folder / "g_lines.yaml").read_text())
    for key in ("task", "dataset_path", "dataset_kwargs", "validation_split"):
        del definition[key]
    write_task(folder, "g_long", items, definition)
    write_task(folder, "g_choice", [{"question": "the cat", "choices": ["dog", "house"], "gold": 1}] * 3,
               {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"})  # fmt: skip
    suite = Suite("g", (*suite_of("g_long").tasks, TaskSpec(task="g_choice", domain="d")))
    harness = load_harness(suite, task_paths=[folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=CONTEXT)
    facts = captured.tasks[0]
    assert (facts.num_items, facts.num_without_reference, facts.num_left_out) == (20, 2, 0)
    assert [text.split(":")[0] for text in captured.skipped] == [
        f"g_long, item {item}, only its reference answer" for item in (0, 1)
    ]
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=CONTEXT, add_bos=True))
    plan.save(folder / "plan")
    plan = Plan.load(folder / "plan")
    assert len(plan.stored.tasks[0].prompts) == 20
    model = hflm(Path(tokenizer.name), add_bos=True, vocab_size=tokenizer.vocab_size, max_length=CONTEXT)
    generated = generate_texts(plan.stored, tokenizer, PlainGenerator(model.model))
    scored = gather_answers(plan, HuggingFaceScorer(model.model).score(plan.rows))
    for used in (harness, restore_harness(plan.stored, task_paths=[folder])):
        rows = measure(plan, scored, used, FACTS, seconds=1.0, texts=generated.texts)
        found = {(row.task, row.metric): row for row in rows}
        assert found["g_long", "exact_match"].num_items == 20
        assert found["g_long", "gold_bpb"].num_items == 18
        assert found["g_choice", "acc"].num_items == 3
    manager = lm_eval_tasks(folder, tmp_path_factory.mktemp("copies"))
    theirs = evaluator.simple_evaluate(model, tasks=["g_long", "g_choice"], task_manager=manager, bootstrap_iters=0)
    assert found["g_long", "exact_match"].value == theirs["results"]["g_long"]["exact_match,none"]
    assert found["g_choice", "acc"].value == theirs["results"]["g_choice"]["acc,none"]


def test_a_suite_whose_references_are_all_too_long_is_refused_with_the_reason(folder: Path, tokenizer: Tokenizer):
    items = [{"question": "the cat", "answer": "dog " * 200}] * 2
    definition = yaml.safe_load((folder / "g_lines.yaml").read_text())
    for key in ("task", "dataset_path", "dataset_kwargs", "validation_split"):
        del definition[key]
    write_task(folder, "g_long", items, definition)
    harness = load_harness(suite_of("g_long"), task_paths=[folder])
    with pytest.raises(ProbeError, match="Suite g has no answer whose likelihood can be scored.*limit is 48.*longer"):
        harness.capture(tokenizer, add_bos=True, max_length=CONTEXT)


def test_right_answers_score_and_stop_strings_end_the_work_early(folder: Path, tokenizer: Tokenizer):
    harness = load_harness(suite_of("g_lines"), task_paths=[folder])
    stored = harness.capture(tokenizer, add_bos=True, max_length=CONTEXT).stored
    answers = [instance.doc["answer"] for instance in harness.tasks[0].task.instances]
    (value,) = harness.generated_metrics({0: answers[:4] + ["wrong"] * 4})
    assert (value.metric, value.value, value.num_items) == ("exact_match", 0.5, 8)
    generated = generate_texts(stored, tokenizer, PlainGenerator(tiny_llama(tokenizer.vocab_size)))
    assert generated.num_tokens < 8 * NEW_TOKENS
    assert cut("one\ntwo, three", [", ", "", "\n"]) == "one"


def test_decoding_equals_that_of_the_exported_tokenizer(tokenizer: Tokenizer):
    exported = hf_tokenizer(Path(tokenizer.name), add_bos=True)
    rnd = random.Random(3)
    for _ in range(300):
        ids = [rnd.randrange(tokenizer.vocab_size) for _ in range(rnd.randint(1, 12))]
        assert decode(tokenizer, ids) == exported.decode(ids, skip_special_tokens=True), ids


def test_what_cannot_be_generated_is_refused_by_name(folder: Path, tokenizer: Tokenizer, task_folder: Path):
    with pytest.raises(ProbeError, match="g_wild draws its answers at random .*temperature=0.7"):
        load_harness(suite_of("g_wild"), task_paths=[folder])
    with pytest.raises(ProbeError, match="t_choice has output_type multiple_choice.*generate"):
        load_harness(suite_of("t_choice"), task_paths=[task_folder])
    with pytest.raises(ProbeError, match="g_code runs the programs .*probe.allow_code_execution=true"):
        load_harness(suite_of("g_code"), task_paths=[folder])
    with pytest.raises(ProbeError, match="g_lines generates up to 24 tokens .* context is 24"):
        load_harness(suite_of("g_lines"), task_paths=[folder]).capture(tokenizer, add_bos=True, max_length=24)


def test_programs_are_run_where_that_is_allowed(folder: Path):
    harness = load_harness(suite_of("g_code"), task_paths=[folder], allow_code_execution=True)
    (value,) = harness.generated_metrics({0: ["x = 1", "x = 2", "while True: x = 1"]})
    assert value.value == pytest.approx(1 / 3)


def test_the_fast_tier_generates_nothing():
    assert [spec.generate for spec in suite_of("g_lines").fast().tasks] == [False]


def generating_run(
    directory: Path, folder: Path, tokenizer: Tokenizer, *, steps: int = 20, milestones: str | None = None
) -> tuple[Any, Any]:
    """A run whose engine can write, too, and its hook; started."""
    run = tiered(make_run(directory, folder), saves=[10, 20, steps], milestones=milestones)
    run.engine.generate = PlainGenerator(tiny_llama(tokenizer.vocab_size)).generate
    suite = Suite("g", (*suite_of("g_lines").tasks, TaskSpec(task="g_open", domain="d")))
    hook = ProbeHook(suite=suite, tokenizer=tokenizer, max_length=CONTEXT, flops_per_token=6.0)
    hook.on_start(run)
    return run, hook


def metrics_of(directory: Path) -> dict[int, set[tuple[str, str]]]:
    found: dict[int, set[tuple[str, str]]] = {}
    for row in load_measurements(directory / "probes.jsonl"):
        found.setdefault(row.step, set()).add((row.task, row.metric))
    return found


def test_answers_are_generated_at_the_last_save_and_gold_ones_scored_at_all(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer
):
    run, hook = generating_run(tmp_path / "run", folder, tokenizer)
    save_at(hook, run, 10, 20)
    found = metrics_of(tmp_path / "run")
    both = {("g_lines", "gold_bpb"), ("g_open", "gold_bpb")}
    assert both <= found[10] and found[20] - found[10] == {("g_lines", "exact_match")}
    first, last = (fields for kind, _, fields in run.tracker.events if kind == "probe")
    assert "generated_tokens" not in first
    assert 8 <= last["generated_tokens"] < 8 * NEW_TOKENS and 0 < last["generate_seconds"] < last["seconds"]


def test_milestones_generate_and_the_fast_tier_does_not(folder: Path, tmp_path: Path, tokenizer: Tokenizer):
    run, hook = generating_run(tmp_path / "run", folder, tokenizer, steps=1000, milestones="20 steps")
    save_at(hook, run, 10, 20)
    kinds = [
        (step, fields["suite"], "generated_tokens" in fields)
        for kind, step, fields in run.tracker.events
        if kind == "probe"
    ]
    assert kinds == [(10, "g-fast", False), (20, "g-fast", False), (20, "g", True)]


def test_a_model_that_cannot_write_is_an_event_and_gold_answers_count(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer
):
    run, hook = generating_run(tmp_path / "run", folder, tokenizer)

    def fail(requests: Sequence[GenerationRequest]) -> list[list[int]]:
        raise MemoryError("no memory")

    run.engine.generate = fail
    save_at(hook, run, 20)
    failed = [(fields["part"], fields["cause"]) for kind, _, fields in run.tracker.events if kind == "probe_failed"]
    assert failed == [("generating", "MemoryError: no memory")]
    assert ("g_lines", "gold_bpb") in metrics_of(tmp_path / "run")[20]
