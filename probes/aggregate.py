"""From tasks to the lines of a suite, and from lines to domains.

A line that names a group (MMLU, BLiMP) is worth one score, as in lm-eval; a domain's mean counts each line once, so
that the 57 subjects of MMLU do not drown the tasks beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from probes.metrics import Found, MetricValue, MissingMetric, checked, is_stderr
from probes.request import TaskFacts
from probes.suite import MEAN_TASK

Aggregate = tuple[str, str, int, Found]
"""Task name, domain, number of examples (-1: they differ), and what was found, whose `task` is the first member's."""


def aggregates(tasks: Sequence[TaskFacts], found: Sequence[Found]) -> Iterator[Aggregate]:
    """Scores of groups, then means of domains; of each metric that all members have.

    A metric that one of the members lost at this checkpoint is missing: over the others it would be another curve.

    Args:
        tasks: of the plan.
        found: of single tasks.
    """
    by_task: list[dict[str, Found]] = [{} for _ in tasks]
    for one in found:
        if not (isinstance(one, MissingMetric) and is_stderr(one.metric)):
            by_task[one.task][one.metric] = one
    lines: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        lines.setdefault(task.line or task.name, []).append(index)
    scores: dict[str, dict[str, Found]] = {}
    for line, members in lines.items():
        scores[line] = by_task[members[0]]
        if len(members) > 1:
            scores[line] = _combined(tasks, [by_task[index] for index in members], group_score)
            yield from (
                (line, tasks[members[0]].domain, _num_fewshot(tasks, members), v) for v in scores[line].values()
            )
    for domain in dict.fromkeys(task.domain for task in tasks):
        of_domain = [line for line, members in lines.items() if tasks[members[0]].domain == domain]
        members = [index for line in of_domain for index in lines[line]]
        means = _combined(tasks, [scores[line] for line in of_domain], domain_mean)
        yield from ((MEAN_TASK, domain, _num_fewshot(tasks, members), mean) for mean in means.values())


def group_score(values: Sequence[MetricValue]) -> MetricValue:
    """Mean over the items of all tasks of a group, as lm-eval weights MMLU, CMMLU, C-Eval and BBH.

    The standard error is lm-eval's pooled one (`lm_eval.api.metrics.pooled_sample_stderr`):
    √(Σ (n_i − 1) n_i se_i² / (Σ n_i − k)) / √(Σ n_i).
    """
    total = sum(value.num_items for value in values)
    mean = sum(value.value * value.num_items for value in values) / total
    roots = [v.stderr * math.sqrt((v.num_items - 1) * v.num_items) for v in values if v.stderr is not None]
    pooled = len(roots) == len(values) and total > len(values)
    stderr = math.hypot(*roots) / math.sqrt((total - len(values)) * total) if pooled else None
    return MetricValue(values[0].task, values[0].metric, mean, stderr, total)


def domain_mean(values: Sequence[MetricValue]) -> MetricValue:
    """Unweighted mean over lines; stderr √(Σ se²) / n."""
    errors = [value.stderr for value in values if value.stderr is not None]
    stderr = math.hypot(*errors) / len(values) if len(errors) == len(values) else None
    mean = sum(value.value for value in values) / len(values)
    return MetricValue(values[0].task, values[0].metric, mean, stderr, sum(value.num_items for value in values))


def _combined(
    tasks: Sequence[TaskFacts],
    members: Sequence[dict[str, Found]],
    combine: Callable[[Sequence[MetricValue]], MetricValue],
) -> dict[str, Found]:
    """Each metric that all members have, combined, or missing where one of them is."""
    combined: dict[str, Found] = {}
    for metric in dict.fromkeys(metric for member in members for metric in member):
        if not all(metric in member for member in members):
            continue
        lost = next((m[metric].task for m in members if isinstance(m[metric], MissingMetric)), None)
        if lost is not None:
            combined[metric] = MissingMetric(lost, metric, f"task {tasks[lost].name} has none")
            continue
        values = [value for member in members if isinstance(value := member[metric], MetricValue)]
        for one in checked(combine(values)):
            combined[one.metric] = one
    return combined


def _num_fewshot(tasks: Sequence[TaskFacts], members: Sequence[int]) -> int:
    shots = {tasks[index].num_fewshot for index in members}
    return shots.pop() if len(shots) == 1 else -1
