"""What a model answered to a plan, and the measurements made of it.

Scoring itself is the engine's: all ranks score, but only rank 0 measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ProbeError
from probes.aggregate import aggregates
from probes.harness import Harness
from probes.metrics import Found, MetricValue, MissingMetric, checked, item_metrics, rescaled_accuracies
from probes.plan import Plan
from probes.record import Measurement, MissingMeasurement


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
    missing: list[MissingMeasurement] | None = None,
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
        missing: takes the metrics that cannot be computed; None makes the first of them an error.

    Raises:
        ProbeError: a metric cannot be computed, and nobody collects those.
    """
    found = _found(plan, answers, harness, texts or {})
    measurements: list[Measurement] = []
    lost: list[MissingMeasurement] = []

    def take(task: str, domain: str, num_fewshot: int, one: Found) -> None:
        named: dict[str, Any] = {
            "step": facts.step, "suite": plan.suite, "plan_hash": plan.plan_hash, "task": task, "domain": domain,
            "num_fewshot": num_fewshot, "metric": one.metric,
        }  # fmt: skip
        if isinstance(one, MissingMetric):
            lost.append(MissingMeasurement(**named, reason=one.reason))
            return
        of_run: dict[str, Any] = {
            "run": facts.run,
            "tokens": facts.tokens,
            "flops": facts.flops,
            "config_hash": facts.config_hash,
        }
        of_items: dict[str, Any] = {"value": one.value, "stderr": one.stderr, "num_items": one.num_items}
        measurements.append(Measurement(**named, **of_run, **of_items, seconds=seconds))

    for one in found:
        task = plan.tasks[one.task]
        take(task.name, task.domain, task.num_fewshot, one)
    for aggregate in aggregates(plan.tasks, plan.stored.groups, found):
        take(*aggregate)
    if lost and missing is None:
        raise ProbeError(lost[0].sentence())
    if missing is not None:
        missing.extend(lost)
    return measurements


def _found(plan: Plan, answers: Answers, harness: Harness, texts: Mapping[int, Sequence[str]]) -> list[Found]:
    """What single tasks give, in the suite's order."""
    found = harness.metrics(plan.table, answers.log_likelihood_R, answers.is_greedy_R)
    found.extend(harness.generated_metrics(texts))
    taken = {(one.task, one.metric) for one in found}
    continuous = item_metrics(plan.table, answers.log_likelihood_R)
    found.extend(one for value in continuous if (value.task, value.metric) not in taken for one in checked(value))
    values = [value for value in found if isinstance(value, MetricValue)]
    found.extend(rescaled_accuracies(values, plan.chance_of_tasks()))
    return sorted(found, key=lambda one: one.task)
