"""Scorers whose results are known: one that knows the answers, one that is certain of nothing, one that guesses."""

import math
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from probes.harness import Harness, load_harness
from probes.plan import Plan, PlanSettings, compile_plan
from probes.record import Measurement
from probes.score import Answers, CheckpointFacts, measure
from probes.suite import Suite, TaskSpec

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")
NAMES = sorted(path.stem for path in (Path(__file__).parents[3] / "probes" / "tasks").glob("*/*.yaml"))


@pytest.fixture(scope="module")
def bundled(tokenizer: Tokenizer) -> tuple[Harness, Plan]:
    """All items of all bundled tasks, in PPL mode, too, where there are choices."""
    specs = (TaskSpec(task=f"fineline_{name}", domain="d", ppl=name != "lambada") for name in NAMES)
    harness = load_harness(Suite("bundled", tuple(specs)))
    captured = harness.capture(tokenizer, add_bos=True, max_length=1024)
    assert not captured.skipped
    return harness, compile_plan(captured, tokenizer, PlanSettings(max_length=1024, add_bos=True))


def results(bundled: tuple[Harness, Plan], log_likelihood_R: np.ndarray, metric: str) -> dict[str, Measurement]:
    harness, plan = bundled
    answers = Answers(log_likelihood_R, log_likelihood_R > -1e-6)
    rows = measure(plan, answers, harness, FACTS, seconds=1.0)
    return {row.task: row for row in rows if row.metric == metric and row.task != "mean"}


def texts_of(harness: Harness, index: int, item: int) -> list[str]:
    task = harness.tasks[index].task
    doc = next(instance.doc for instance in task.instances if instance.doc_id == item)
    return list(task.doc_to_choice(doc)) if task.OUTPUT_TYPE == "multiple_choice" else []


def test_a_scorer_that_knows_the_answers_reaches_everything_on_every_task(bundled: tuple[Harness, Plan]):
    table = bundled[1].table
    knowing = np.where(table.is_gold_R, -1e-9, -30.0) * table.num_tokens_R
    tasks = {f"fineline_{name}" for name in NAMES}
    for metric in ("acc", "acc_rescaled"):
        found = results(bundled, knowing, metric)
        assert {task: row.value for task, row in found.items()} == dict.fromkeys(tasks, 1.0)
        assert {row.stderr for row in found.values()} == {0.0}
    assert {row.value for row in results(bundled, knowing, "acc_norm").values()} == {1.0}
    found = results(bundled, knowing, "ppl_acc")
    assert {task: row.value for task, row in found.items()} == dict.fromkeys(tasks - {"fineline_lambada"}, 1.0)
    assert results(bundled, knowing, "perplexity")["fineline_lambada"].value == pytest.approx(1)
    for metric, best in (("gold_bpb", 0), ("correct_prob", 1), ("norm_correct_prob", 1), ("norm_margin", 1)):
        assert all(row.value == pytest.approx(best, abs=1e-6) for row in results(bundled, knowing, metric).values())


def test_a_uniform_scorer_picks_the_shortest_answer_and_none_of_equal_length(bundled: tuple[Harness, Plan]):
    plan = bundled[1]
    table = plan.table
    uniform = -math.log(340) * table.num_tokens_R
    acc, acc_norm, ppl = (results(bundled, uniform, metric) for metric in ("acc", "acc_norm", "ppl_acc"))
    share = results(bundled, uniform, "norm_correct_prob_per_token")
    rescaled = results(bundled, uniform, "acc_rescaled")
    for index, task in enumerate(plan.tasks):
        choices = np.flatnonzero((table.task_R == index) & table.is_choice_R)
        wholes = np.flatnonzero((table.task_R == index) & table.is_whole_R)
        tokens, chars, longest = [], [], []
        for item in dict.fromkeys(table.item_R[choices].tolist()):
            of_item = choices[table.item_R[choices] == item]
            tokens.append(table.is_gold_R[of_item][np.argmin(table.num_tokens_R[of_item])])
            # lm-eval counts the blanks that some of HellaSwag's answers begin with, num_chars does not
            lengths = [len(choice) for choice in texts_of(bundled[0], index, item)]
            if task.name in acc_norm:
                chars.append(table.is_gold_R[of_item][np.argmax(uniform[of_item] / lengths)])
            if len(wholes):  # log(340) · (n − 1) / n is lowest for the shortest text
                texts = wholes[table.item_R[wholes] == item]
                longest.append(table.is_gold_R[texts][np.argmin(table.num_tokens_R[texts])])
        if task.name == "fineline_lambada":
            assert acc[task.name].value == 0
            continue
        assert acc[task.name].value == pytest.approx(np.mean(tokens))
        assert ppl[task.name].value == pytest.approx(np.mean(longest))
        if task.name in acc_norm:
            assert acc_norm[task.name].value == pytest.approx(np.mean(chars))
        # By token every answer is as likely as any other: chance, exactly.
        chance = plan.chance()[task.name]
        assert share[task.name].value == pytest.approx(chance, rel=1e-12)
        assert rescaled[task.name].value == pytest.approx((acc[task.name].value - chance) / (1 - chance))


def test_a_scorer_that_guesses_lands_on_chance_within_its_standard_error(bundled: tuple[Harness, Plan]):
    plan = bundled[1]
    guesses = -np.random.default_rng(0).exponential(3.0, len(plan.table.task_R))
    chance = plan.chance()
    assert set(chance) == {f"fineline_{name}" for name in NAMES if name != "lambada"}
    # Six tasks, four metrics: one of 24 beyond 3.3 standard errors is expected in 43 trials.
    for metric in ("acc", "ppl_acc"):
        found = results(bundled, guesses if metric == "acc" else guesses * (plan.table.num_tokens_R + 1), metric)
        for task, level in chance.items():
            stderr = math.sqrt(level * (1 - level) / found[task].num_items)
            assert abs(found[task].value - level) <= 3.3 * stderr, (task, metric)
            assert found[task].stderr == pytest.approx(stderr, rel=0.15)
    for task, row in results(bundled, guesses, "acc_rescaled").items():
        assert task == "fineline_lambada" or abs(row.value) <= 3.3 * (row.stderr or 0)
