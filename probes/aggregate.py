"""From tasks to the lines of a suite, and from lines to domains.

A line that names a group (MMLU, BLiMP) is worth one score, as in lm-eval; a domain's mean counts each line once, so
that the 57 subjects of MMLU do not drown the tasks beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from probes.metrics import MetricValue
from probes.request import TaskFacts
from probes.suite import MEAN_TASK

Aggregate = tuple[str, str, int, MetricValue]
"""Task name, domain, number of examples (-1: they differ), and the value, whose `task` is the first member's index."""


def aggregates(tasks: Sequence[TaskFacts], values: Sequence[MetricValue]) -> Iterator[Aggregate]:
    """Scores of groups, then means of domains; of each metric that all members have.

    Args:
        tasks: of the plan.
        values: of single tasks.
    """
    by_task: list[dict[str, MetricValue]] = [{} for _ in tasks]
    for value in values:
        by_task[value.task][value.metric] = value
    lines: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        lines.setdefault(task.line or task.name, []).append(index)
    scores: dict[str, dict[str, MetricValue]] = {}
    for line, members in lines.items():
        scores[line] = by_task[members[0]]
        if len(members) > 1:
            found = {name: group_score(of_tasks) for name, of_tasks in _shared([by_task[i] for i in members])}
            scores[line] = found
            yield from ((line, tasks[members[0]].domain, _num_fewshot(tasks, members), v) for v in found.values())
    for domain in dict.fromkeys(task.domain for task in tasks):
        of_domain = [line for line, members in lines.items() if tasks[members[0]].domain == domain]
        members = [index for line in of_domain for index in lines[line]]
        for _, of_lines in _shared([scores[line] for line in of_domain]):
            yield MEAN_TASK, domain, _num_fewshot(tasks, members), domain_mean(of_lines)


def group_score(values: Sequence[MetricValue]) -> MetricValue:
    """Mean over the items of all tasks of a group, as lm-eval weights MMLU, CMMLU, C-Eval and BBH.

    The standard error is lm-eval's pooled one (`lm_eval.api.metrics.pooled_sample_stderr`):
    √(Σ (n_i − 1) n_i se_i² / (Σ n_i − k)) / √(Σ n_i).
    """
    total = sum(value.num_items for value in values)
    mean = sum(value.value * value.num_items for value in values) / total
    squares = [(v.num_items - 1) * v.num_items * v.stderr**2 for v in values if v.stderr is not None]
    pooled = len(squares) == len(values) and total > len(values)
    stderr = math.sqrt(sum(squares) / (total - len(values)) / total) if pooled else None
    return MetricValue(values[0].task, values[0].metric, mean, stderr, total)


def domain_mean(values: Sequence[MetricValue]) -> MetricValue:
    """Unweighted mean over lines; stderr √(Σ se²) / n."""
    errors = [value.stderr for value in values if value.stderr is not None]
    stderr = math.sqrt(sum(e**2 for e in errors)) / len(values) if len(errors) == len(values) else None
    mean = sum(value.value for value in values) / len(values)
    return MetricValue(values[0].task, values[0].metric, mean, stderr, sum(value.num_items for value in values))


def _shared(members: Sequence[dict[str, MetricValue]]) -> Iterator[tuple[str, list[MetricValue]]]:
    for metric in members[0] if members else ():
        if all(metric in member for member in members):
            yield metric, [member[metric] for member in members]


def _num_fewshot(tasks: Sequence[TaskFacts], members: Sequence[int]) -> int:
    shots = {tasks[index].num_fewshot for index in members}
    return shots.pop() if len(shots) == 1 else -1
