import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.base import PackedRows, TokenLogProbs
from pretrain.errors import ProbeError
from probes.__main__ import main
from probes.harness import Harness, load_harness
from probes.plan import Plan, PlanSettings, compile_plan
from probes.record import Measurement
from probes.score import Answers, CheckpointFacts, gather_answers, measure
from probes.suite import Suite, TaskSpec, load_suite

FACTS = CheckpointFacts(run="r", step=3, tokens=30, flops=9.0, config_hash="c")


class Oracle:
    """Scores from a list of log-probabilities."""

    def __init__(self, log_probs: np.ndarray, greedy: np.ndarray) -> None:
        self.log_probs, self.greedy = log_probs, greedy

    def score(self, rows: PackedRows) -> TokenLogProbs:
        return TokenLogProbs(self.log_probs, self.greedy)


def build(suite: Suite, folders: list[Path], tokenizer: Tokenizer, **fields: Any) -> tuple[Harness, Plan]:
    harness = load_harness(suite, task_paths=folders, **fields)
    captured = harness.capture(tokenizer, add_bos=True, max_length=1024)
    return harness, compile_plan(captured, tokenizer, PlanSettings(max_length=1024, add_bos=True))


def knowing(plan: Plan) -> Oracle:
    """Certain of every token of right answers, next to impossible otherwise.

    A pair that right and wrong answers share is likely; of tasks whose contexts are the choices every pair differs.
    """
    log_probs = np.full(plan.rows.num_pairs, -30.0)
    table = plan.table
    for number in np.flatnonzero(table.is_gold_R):
        log_probs[table.span_pairs[table.span_offsets_R1[number] : table.span_offsets_R1[number + 1]]] = -1e-9
    return Oracle(log_probs, log_probs > -1)


def run_plan(plan: Plan, scorer: Any, harness: Harness, facts: CheckpointFacts) -> tuple[list[Measurement], Answers]:
    answers = gather_answers(plan, scorer.score(plan.rows))
    return measure(plan, answers, harness, facts, seconds=0.5), answers


def metric(rows: list[Measurement], name: str) -> dict[str, Measurement]:
    return {row.task: row for row in rows if row.metric == name and row.task != "mean"}


def test_a_scorer_that_knows_the_answers_is_right_everywhere(tokenizer: Tokenizer):
    harness, plan = build(load_suite("demo"), [], tokenizer, limit=60)
    rows, _ = run_plan(plan, knowing(plan), harness, FACTS)
    assert {task: row.value for task, row in metric(rows, "acc").items()} == {task.name: 1.0 for task in plan.tasks}
    assert all(row.value == pytest.approx(0, abs=1e-6) for row in metric(rows, "gold_bpb").values())
    assert all(row.value == pytest.approx(1, abs=1e-6) for row in metric(rows, "correct_prob").values())
    assert all(row.value > 0.99 for row in metric(rows, "norm_margin").values())
    assert next(row.value for row in rows if row.metric == "perplexity") == pytest.approx(1)


def test_a_scorer_that_guesses_is_right_by_chance(tokenizer: Tokenizer):
    harness, plan = build(load_suite("demo"), [], tokenizer, limit=150)
    rng = np.random.default_rng(0)
    guesses = Oracle(-rng.exponential(3.0, plan.rows.num_pairs), np.zeros(plan.rows.num_pairs, bool))
    # Answers of unequal length would not be chosen equally often by their sum: the same noise for each answer.
    table = plan.table
    for number in range(len(table.task_R)):
        span = table.span_pairs[table.span_offsets_R1[number] : table.span_offsets_R1[number + 1]]
        guesses.log_probs[span] = 0.0
    last = table.span_pairs[table.span_offsets_R1[1:] - 1]
    guesses.log_probs[last] = -rng.exponential(3.0, len(last))
    rows, _ = run_plan(plan, guesses, harness, FACTS)
    chance = {"fineline_hellaswag": 0.25, "fineline_arc_easy": 0.25, "fineline_openbookqa": 0.25, "fineline_lambada": 0}
    for task, row in metric(rows, "acc").items():
        expected = chance.get(task, 0.5)
        error = math.sqrt(expected * (1 - expected) / row.num_items)
        assert abs(row.value - expected) <= 3.5 * error, task


def test_greedy_and_log_likelihood_of_a_request_combine_those_of_its_tokens(task_folder: Path, tokenizer: Tokenizer):
    suite = Suite("one", (TaskSpec(task="t_word", domain="d"),))
    _, plan = build(suite, [task_folder], tokenizer)
    rng = np.random.default_rng(1)
    log_probs, greedy = -rng.random(plan.rows.num_pairs), rng.random(plan.rows.num_pairs) < 0.7
    answers = gather_answers(plan, TokenLogProbs(log_probs, greedy))
    offsets = plan.table.span_offsets_R1
    for number, (value, is_greedy) in enumerate(zip(answers.log_likelihood_R, answers.is_greedy_R, strict=True)):
        span = plan.table.span_pairs[offsets[number] : offsets[number + 1]]
        assert value == pytest.approx(sum(log_probs[span]), rel=1e-12)
        assert is_greedy == all(greedy[span])


def test_domains_have_unweighted_means_over_their_tasks(task_folder: Path, suite: Suite, tokenizer: Tokenizer):
    harness, plan = build(suite, [task_folder], tokenizer)
    rng = np.random.default_rng(2)
    scorer = Oracle(-rng.exponential(1.0, plan.rows.num_pairs), rng.random(plan.rows.num_pairs) < 0.5)
    rows, _ = run_plan(plan, scorer, harness, FACTS)
    of_tasks = [row for row in rows if row.domain == "choice" and row.metric == "acc" and row.task != "mean"]
    mean = next(row for row in rows if row.domain == "choice" and row.metric == "acc" and row.task == "mean")
    assert len(of_tasks) == 4
    assert mean.value == pytest.approx(np.mean([row.value for row in of_tasks]))
    assert mean.stderr == pytest.approx(math.sqrt(sum((row.stderr or 0) ** 2 for row in of_tasks)) / 4)
    assert mean.num_items == sum(row.num_items for row in of_tasks)
    assert mean.num_fewshot == -1  # t_shots has two examples
    shared = {row.metric for row in rows if row.domain == "language" and row.task == "mean"}
    assert {"acc", "gold_bpb"} <= shared  # t_word alone has perplexity, t_pairs alone acc_norm
    assert not {"perplexity", "acc_norm", "margin"} & shared


def test_every_measurement_names_the_run_the_plan_and_the_cost(task_folder: Path, suite: Suite, tokenizer: Tokenizer):
    harness, plan = build(suite, [task_folder], tokenizer)
    rows, answers = run_plan(plan, knowing(plan), harness, FACTS)
    assert {(row.run, row.step, row.tokens, row.flops, row.config_hash) for row in rows} == {("r", 3, 30, 9.0, "c")}
    assert {(row.suite, row.plan_hash) for row in rows} == {("small", plan.plan_hash)}
    assert all(row.seconds > 0 for row in rows)
    keys = [(row.domain, row.task, row.metric) for row in rows]
    assert len(set(keys)) == len(keys)
    assert len(answers.log_likelihood_R) == len(plan.table.task_R)


def test_answers_that_are_not_finite_are_refused(task_folder: Path, suite: Suite, tokenizer: Tokenizer):
    _, plan = build(suite, [task_folder], tokenizer)
    log_probs = np.zeros(plan.rows.num_pairs)
    log_probs[3] = np.nan
    with pytest.raises(ProbeError, match=f"1 of {plan.rows.num_pairs} log-probabilities of suite small are not finite"):
        gather_answers(plan, TokenLogProbs(log_probs, log_probs > -1))


@pytest.mark.parametrize(("out", "what"), [("home", "it holds letters"), ("home/letters", "a file")])
def test_scores_are_not_written_into_a_folder_of_others(
    out: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").write_text("mine")
    assert main(["score", "nowhere", f"out={out}"]) == 2
    printed = capsys.readouterr().err
    assert f"out={out} is not a folder of scores" in printed and what in printed
