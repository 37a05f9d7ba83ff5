"""Requests beyond lm-eval's choices: windows of texts, gold answers of generative tasks, whole prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ProbeError
from probes.harness import Harness, load_harness
from probes.plan import Plan, PlanSettings, compile_plan
from probes.request import SuiteRequests
from probes.score import CheckpointFacts, gather_answers, measure
from probes.suite import Suite, TaskSpec
from tests.support.hf_scorer import HuggingFaceScorer, tiny_llama
from tests.unit.probes.conftest import MORE_TASKS, MULTIPLE_CHOICE, write_task
from tests.unit.probes.test_harness import hflm, lm_eval_tasks

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
CONTEXT = 24


def asked(folder: Path, tokenizer: Tokenizer, *names: str, max_length: int = 256, **fields: Any) -> SuiteRequests:
    suite = Suite("kinds", tuple(TaskSpec(task=name, domain="d", **fields) for name in names))
    return load_harness(suite, task_paths=[folder]).capture(tokenizer, add_bos=True, max_length=max_length)


def decoded(tokenizer: Tokenizer, tokens: tuple[int, ...]) -> str:
    return "".join(tokenizer.piece(token) for token in tokens).replace("\u2581", " ").replace("<0x0A>", "\n")


@pytest.mark.parametrize("add_bos", [pytest.param(False, marks=pytest.mark.slow), True])
def test_metrics_of_a_model_equal_those_lm_eval_computes_with_it(
    add_bos: bool, task_folder: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: Any
):
    from lm_eval import evaluator

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    (tmp_path / "mc2.py").write_text((task_folder / "mc2.py").read_text())
    model = hflm(Path(tokenizer.name), add_bos=add_bos, vocab_size=tokenizer.vocab_size, max_length=CONTEXT)
    model.model.double()
    manager = lm_eval_tasks(task_folder, tmp_path)
    # 200 resamples: those of probes.lm_eval_metrics, with the same seed
    expected = evaluator.simple_evaluate(model, tasks=list(MORE_TASKS), task_manager=manager, bootstrap_iters=200)
    suite = Suite("more", tuple(TaskSpec(task=name, domain="d") for name in MORE_TASKS))
    harness = load_harness(suite, task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=add_bos, max_length=CONTEXT)
    assert not captured.skipped
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=CONTEXT, add_bos=add_bos, tokens_per_row=512))
    answers = gather_answers(plan, HuggingFaceScorer(model.model).score(plan.rows))
    found = {
        (plan.tasks[value.task].name, value.metric): value
        for value in harness.metrics(plan.table, answers.log_likelihood_R, answers.is_greedy_R)
    }
    names = {
        (task, key.removesuffix(",none"))
        for task in MORE_TASKS
        for key in expected["results"][task]
        if key.endswith(",none") and not key.endswith("_stderr,none")
    }
    assert set(found) == names and len(names) == 3 + 8 + 1
    for (task, metric), value in found.items():
        theirs = expected["results"][task]
        # Hugging Face's RMSNorm and rotary tables stay in fp32, see test_equivalence
        assert value.value == pytest.approx(theirs[f"{metric},none"], rel=1e-6), (task, metric)
        stderr = theirs[f"{metric}_stderr,none"]
        assert stderr == "N/A" or value.stderr == pytest.approx(stderr, rel=1e-6), (task, metric)
        assert value.stderr is not None and (value.stderr > 0 or metric == "exact_match")
        assert value.num_items == expected["n-samples"][task]["effective"]


def test_a_text_longer_than_the_context_is_scored_in_windows_token_by_token(task_folder: Path, tokenizer: Tokenizer):
    captured = asked(task_folder, tokenizer, "t_text", max_length=CONTEXT)
    windows: dict[int, int] = {}
    for request in captured.requests:
        assert (request.choice, request.is_choice, request.is_gold) == (0, False, False)
        assert len(request.context) + len(request.continuation) <= CONTEXT + 1
        windows[request.item] = windows.get(request.item, 0) + 1
    assert captured.tasks[0].num_items == len(windows) == 8
    assert max(windows.values()) >= 3 and min(windows.values()) == 1
    for item in windows:
        parts = [request for request in captured.requests if request.item == item]
        text = "".join(decoded(tokenizer, request.continuation) for request in parts)
        assert sum(request.num_bytes for request in parts) == len(text.removeprefix("<s>").strip())
        assert [request.num_bytes > 0 for request in parts] == [True] + [False] * (len(parts) - 1)


def test_a_text_without_words_is_skipped_by_name(tmp_path: Path, tokenizer: Tokenizer):
    definition = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}"}
    metrics = [{"metric": "bits_per_byte"}]
    write_task(tmp_path, "pages", [{"page": "the cat"}, {"page": ""}], {**definition, "metric_list": metrics})
    harness = load_harness(Suite("s", (TaskSpec(task="pages", domain="d"),)), task_paths=[tmp_path])
    captured = harness.capture(tokenizer, add_bos=False, max_length=CONTEXT)
    assert captured.skipped == ["pages, item 1: its text is empty"]


def test_generative_tasks_are_asked_for_their_gold_answer(task_folder: Path, tokenizer: Tokenizer):
    names = ("t_solve", "t_recall", "t_program")
    harness = load_harness(Suite("g", tuple(TaskSpec(task=n, domain="d") for n in names)), task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    assert captured.skipped == ["t_recall, item 2: its gold answer is missing or empty"]
    assert [(task.num_items, task.num_fewshot, task.not_computed) for task in captured.tasks] == [
        (9, 1, "exact_match"), (5, 0, "exact_match"), (4, 0, "exact_match"),
    ]  # fmt: skip
    golds = ("answer", "answer", "canonical_solution")
    for request in captured.requests:
        instance = next(i for i in harness.tasks[request.task].task.instances if i.doc_id == request.item)
        gold = instance.doc[golds[request.task]]
        gold = gold[0] if isinstance(gold, list) else gold
        space = "" if request.task == 2 else " "  # a program continues its prompt
        # SentencePiece writes a blank before the first word
        assert decoded(tokenizer, request.context + request.continuation) == f"<s> {instance.args[0]}{space}{gold}"
        assert decoded(tokenizer, request.continuation).strip() == gold or request.task == 2
        assert (request.choice, request.is_choice, request.is_gold, request.num_bytes) == (0, True, True, len(gold))
    rows, plan = measured(harness, captured, tokenizer)
    metrics = {row.metric for row in rows}
    assert {"gold_bpb", "correct_prob", "correct_prob_per_byte"} <= metrics
    assert not {name for name in metrics if name.startswith(("exact_match", "acc", "margin", "norm_"))}
    assert plan.chance() == {}


def measured(harness: Harness, captured: SuiteRequests, tokenizer: Tokenizer) -> tuple[list[Any], Plan]:
    plan = compile_plan(captured, tokenizer, PlanSettings(max_length=256, add_bos=True))
    answers = gather_answers(plan, HuggingFaceScorer(tiny_llama(tokenizer.vocab_size)).score(plan.rows))
    return measure(plan, answers, harness, FACTS, seconds=1.0), plan


@pytest.mark.parametrize(
    ("definition", "doc", "expected"),
    [
        ({"doc_to_target": "{{a}}"}, {"a": "four"}, " four"),
        ({"doc_to_target": "{{a}}", "target_delimiter": "\n"}, {"a": "four"}, "\nfour"),
        ({"doc_to_target": "a", "doc_to_choice": ["no", "yes"]}, {"a": 1}, " yes"),
        ({"doc_to_target": "{{a}}", "gen_prefix": "So"}, {"a": "four"}, " four"),
        ({"doc_to_target": "{{a}}", "gen_prefix": "So\n"}, {"a": "four"}, "four"),
    ],
)
def test_the_gold_answer_stands_where_lm_eval_puts_those_of_examples(
    definition: dict[str, Any], doc: dict[str, Any], expected: str, tmp_path: Path
):
    from probes.capture import gold_continuation

    whole = {"output_type": "generate_until", "doc_to_text": "Q:", "num_fewshot": 1, **definition}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    write_task(tmp_path, "gold", [doc, doc], {**whole, "fewshot_split": "validation", "metric_list": metrics})
    harness = load_harness(Suite("s", (TaskSpec(task="gold", domain="d"),)), task_paths=[tmp_path])
    task = harness.tasks[0].task
    instance = task.instances[0]
    gold = gold_continuation(task, instance.doc)
    assert gold == expected
    example, prompt = instance.args[0].split("\n\n")  # the example's answer follows the same prompt
    assert example == prompt + gold


def test_tasks_that_load_code_eval_at_import_need_no_network_and_run_nothing(tmp_path: Path, tokenizer: Tokenizer):
    definition = {"output_type": "generate_until", "doc_to_text": "q", "doc_to_target": "a", "unsafe_code": True}
    write_task(tmp_path, "program", [{"a": "b", "code": "the cat"}], definition)
    (tmp_path / "passing.py").write_text(  # as lm-eval's humaneval/utils.py
        "import evaluate\n"
        "compute_ = evaluate.load('code_eval')\n"
        "assert compute_.compute(references=['x'], predictions=[['y']], k=[1])[0] == {'pass@1': 0.0}\n"
        "def pass_at_1(references, predictions):\n"
        "    return compute_.compute(references=references, predictions=predictions, k=[1])[0]['pass@1']\n"
    )
    with (tmp_path / "program.yaml").open("a") as file:
        file.write("metric_list:\n- {metric: !function passing.pass_at_1, aggregation: mean, higher_is_better: true}\n")
    captured = asked(tmp_path, tokenizer, "program")
    assert captured.tasks[0].not_computed == "pass_at_1"
    assert decoded(tokenizer, captured.requests[0].continuation) == "the cat"


def test_a_program_without_a_solution_is_refused_by_name(tmp_path: Path, tokenizer: Tokenizer):
    definition = {"output_type": "generate_until", "doc_to_text": "q", "doc_to_target": "a", "unsafe_code": True}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    write_task(tmp_path, "program", [{"a": "b"}], {**definition, "metric_list": metrics})
    with pytest.raises(ProbeError, match="program runs programs, but its items have no canonical_solution or code"):
        asked(tmp_path, tokenizer, "program")


def test_ppl_mode_equals_a_plain_computation_over_the_whole_text(task_folder: Path, tokenizer: Tokenizer):
    import torch

    harness = load_harness(
        Suite("p", (TaskSpec(task="t_choice", domain="d", ppl=True), TaskSpec(task="t_blank", domain="d", ppl=True))),
        task_paths=[task_folder],
    )
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    model = tiny_llama(tokenizer.vocab_size)
    rows, plan = measured(harness, captured, tokenizer)
    found = {(row.task, row.metric): row for row in rows}
    for index, task in enumerate(harness.tasks):
        right, scores = [], []
        for item in range(captured.tasks[index].num_items):
            instances = [instance for instance in task.task.instances if instance.doc_id == item]
            per_choice = []
            for instance in instances:
                tokens = [tokenizer.bos_id, *tokenizer.encode("".join(instance.args))]
                with torch.no_grad():
                    logits = model(torch.tensor([tokens])).logits[0, :-1].double()
                losses = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum")
                per_choice.append(losses.item() / len(tokens))
            right.append(np.argmin(per_choice) == instances[0].doc["gold"])
            scores.append(per_choice[instances[0].doc["gold"]])
        assert found[task.name, "ppl_acc"].value == np.mean(right)
        assert found[task.name, "ppl_acc"].stderr == pytest.approx(np.std(right, ddof=1) / np.sqrt(len(right)))
        assert found[task.name, "ppl_gold"].value == pytest.approx(np.mean(scores), rel=1e-5)
    assert found["mean", "ppl_acc"].value == pytest.approx(
        np.mean([found[t.name, "ppl_acc"].value for t in plan.tasks])
    )


def test_ppl_mode_changes_the_plan_but_none_of_the_other_metrics(task_folder: Path, tokenizer: Tokenizer):
    results, hashes = [], []
    for ppl in (False, True):
        suite = Suite(
            "p", (TaskSpec(task="t_choice", domain="d", ppl=ppl), TaskSpec(task="t_sets", domain="d", ppl=ppl))
        )
        harness = load_harness(suite, task_paths=[task_folder])
        captured = harness.capture(tokenizer, add_bos=True, max_length=256)
        rows, plan = measured(harness, captured, tokenizer)
        results.append({(row.task, row.metric): row.value for row in rows})
        hashes.append(plan.plan_hash)
    assert set(results[1]) - set(results[0]) == {
        (task, metric) for task in ("t_choice", "t_sets", "mean") for metric in ("ppl_acc", "ppl_gold")
    }
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-5), name
    assert hashes[0] != hashes[1]


def test_a_whole_prompt_too_long_loses_tokens_on_the_left(task_folder: Path, tokenizer: Tokenizer):
    captured = asked(task_folder, tokenizer, "t_choice", max_length=12, ppl=True)
    wholes = [request for request in captured.requests if request.is_whole]
    assert len(wholes) == sum(request.is_choice for request in captured.requests)
    assert {len(request.context) for request in wholes} == {1}
    assert max(len(request.continuation) for request in wholes) == 12
    for request in captured.requests:
        if not request.is_whole:
            whole = next(w for w in wholes if (w.item, w.choice) == (request.item, request.choice))
            assert (whole.context + whole.continuation) == (request.context + request.continuation)[-13:]


def test_a_set_of_right_answers_is_asked_of_the_task(task_folder: Path, tokenizer: Tokenizer):
    harness = load_harness(Suite("s", (TaskSpec(task="t_sets", domain="d"),)), task_paths=[task_folder])
    captured = harness.capture(tokenizer, add_bos=True, max_length=256)
    for instance, request in zip(harness.tasks[0].task.instances, captured.requests, strict=True):
        assert request.is_gold == bool(instance.doc["mc2_targets"]["labels"][instance.idx])
    rows, plan = measured(harness, captured, tokenizer)
    found = {row.metric: row.value for row in rows if row.task == "t_sets"}
    assert found["norm_correct_prob"] == pytest.approx(found["acc"], rel=1e-9)
    labels = [
        instances.doc["mc2_targets"]["labels"] for instances in harness.tasks[0].task.instances if instances.idx == 0
    ]
    chance = np.mean([np.mean(item) for item in labels])
    assert plan.chance() == {"t_sets": pytest.approx(chance)}
    assert found["acc_rescaled"] == pytest.approx((found["acc"] - chance) / (1 - chance))


def test_items_without_their_right_answer_are_counted_or_skipped_by_name(tmp_path: Path, tokenizer: Tokenizer):
    labels = [0, -1, 1, 7]
    items = [{"question": "the cat", "choices": ["dog", "house"], "gold": gold} for gold in labels]
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"}
    write_task(tmp_path, "some", items, definition)
    captured = asked(tmp_path, tokenizer, "some")
    assert (captured.tasks[0].num_items, captured.tasks[0].num_without_gold) == (4, 2)
    write_task(tmp_path, "hidden", items[1:2], definition)
    with pytest.raises(ProbeError, match="None of the 1 items of task hidden has its right answer"):
        asked(tmp_path, tokenizer, "hidden")
    write_task(tmp_path, "gone", [items[0], {**items[0], "gold": None}], definition)
    assert asked(tmp_path, tokenizer, "gone").skipped == ["gone, item 1: its right answer is missing"]
