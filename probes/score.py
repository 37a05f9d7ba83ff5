"""A plan run on anything that scores packed rows: answers, then measurements.

The two halves are separate because all ranks score, but only rank 0 measures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.engine.base import Scorer, TokenLogProbs
from pretrain.errors import ProbeError
from probes.aggregate import aggregates
from probes.harness import Harness
from probes.metrics import MetricValue, item_metrics, rescaled_accuracies
from probes.plan import Plan
from probes.record import Measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """What measurements of a checkpoint say of the run.

    Attributes:
        run: name of the run.
        step: optimizer steps done.
        tokens: tokens trained on.
        flops: training FLOPs spent.
        config_hash: hash of the run's resolved configuration.
    """

    run: str
    step: int
    tokens: int
    flops: float
    config_hash: str


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers to a plan's requests.

    Attributes:
        log_likelihood_R: float64 [requests], natural log-likelihood of the whole continuation.
        is_greedy_R: bool [requests], every token of the continuation is the likeliest one.
    """

    log_likelihood_R: np.ndarray
    is_greedy_R: np.ndarray


def gather_answers(plan: Plan, scored: TokenLogProbs) -> Answers:
    """Sums the token log-probabilities of each request.

    Raises:
        ProbeError: a log-probability is not finite, as those of a model that has diverged.
    """
    finite = np.isfinite(scored.log_prob_P)
    if not finite.all():
        raise ProbeError(
            f"{(~finite).sum()} of {len(finite)} log-probabilities of suite {plan.suite} are not finite: the model "
            f"has diverged, or its weights are damaged."
        )
    starts = plan.table.span_offsets_R1[:-1]
    log_likelihood_R = np.add.reduceat(scored.log_prob_P[plan.table.span_pairs], starts)
    is_greedy_R = np.logical_and.reduceat(scored.is_greedy_P[plan.table.span_pairs], starts)
    return Answers(log_likelihood_R, is_greedy_R)


def measure(
    plan: Plan,
    answers: Answers,
    harness: Harness,
    facts: CheckpointFacts,
    *,
    seconds: float,
    texts: Mapping[int, Sequence[str]] | None = None,
) -> list[Measurement]:
    """All measurements of a checkpoint: tasks in the suite's order, then groups, then the means of domains.

    What is aggregated over tasks that differ in their number of examples has num_fewshot -1.

    Args:
        plan: compiled from this harness's requests.
        answers: the model's.
        harness: turns answers into lm-eval's own metrics.
        facts: of the checkpoint.
        seconds: wall time of scoring.
        texts: what the model wrote, see `probes.generate.Generated`; None where nothing was generated.
    """
    values = harness.metrics(plan.table, answers.log_likelihood_R, answers.is_greedy_R)
    values.extend(harness.generated_metrics(texts or {}))
    taken = {(value.task, value.metric) for value in values}
    continuous = item_metrics(plan.table, answers.log_likelihood_R)
    values.extend(value for value in continuous if (value.task, value.metric) not in taken)
    chance = plan.chance()
    levels = {index: chance[task.name] for index, task in enumerate(plan.tasks) if task.name in chance}
    values.extend(rescaled_accuracies(values, levels))
    values.sort(key=lambda value: value.task)

    def row(task: str, domain: str, num_fewshot: int, value: MetricValue) -> Measurement:
        return Measurement(
            run=facts.run, step=facts.step, tokens=facts.tokens, flops=facts.flops, suite=plan.suite,
            task=task, domain=domain, num_fewshot=num_fewshot, metric=value.metric, value=value.value,
            stderr=value.stderr, num_items=value.num_items, plan_hash=plan.plan_hash,
            config_hash=facts.config_hash, seconds=seconds,
        )  # fmt: skip

    measurements = []
    for value in values:
        task = plan.tasks[value.task]
        measurements.append(row(task.name, task.domain, task.num_fewshot, value))
    for line, domain, num_fewshot, value in aggregates(plan.tasks, values):
        measurements.append(row(line, domain, num_fewshot, value))
    return measurements


def run_plan(plan: Plan, scorer: Scorer, harness: Harness, facts: CheckpointFacts) -> tuple[list[Measurement], Answers]:
    """Scores a plan and measures; for scorers of one process. See `probes.hook` for many ranks.

    Args:
        plan: compiled from this harness's requests.
        scorer: the model.
        harness: the suite's tasks.
        facts: of the checkpoint.

    Returns:
        The measurements, and the answers to each request.

    Raises:
        ProbeError: the model's answers are not finite.
    """
    start = time.perf_counter()
    answers = gather_answers(plan, scorer.score(plan.rows))
    seconds = time.perf_counter() - start
    return measure(plan, answers, harness, facts, seconds=seconds), answers
