"""From tasks to the lines of a suite, and from lines to domains.

A line that names a group (MMLU, BLiMP) is worth one score, as in lm-eval; a domain's mean counts each line once, so
that the 57 subjects of MMLU do not drown the tasks beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

from probes.groups import TaskGroup
from probes.metrics import Found, MetricValue, MissingMetric, checked, is_stderr
from probes.request import TaskFacts
from probes.suite import MEAN_TASK

Aggregate = tuple[str, str, int, Found]
"""Task name, domain, number of examples (-1: they differ), and what was found, whose `task` is the first member's."""

Scores = dict[str, Found]
"""By metric."""


def aggregates(tasks: Sequence[TaskFacts], groups: Sequence[TaskGroup], found: Sequence[Found]) -> Iterator[Aggregate]:
    """Scores of groups, then means of domains, each over members that all have the metric.

    Of metrics in its `aggregate_metric_list` a group has what lm-eval prints, over those of its tasks that have them.
    A metric that one of the members lost at this checkpoint is missing: over the others it would be another curve.

    Args:
        tasks: of the plan.
        groups: of the plan.
        found: of single tasks.
    """
    by_task: list[Scores] = [{} for _ in tasks]
    for one in found:
        if not (isinstance(one, MissingMetric) and is_stderr(one.metric)):
            by_task[one.task][one.metric] = one
    sizes = [max((one.num_items for one in own.values() if isinstance(one, MetricValue)), default=0) for own in by_task]
    lines: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        lines.setdefault(task.line or task.name, []).append(index)
    scores = {line: by_task[members[0]] for line, members in lines.items()}
    for group in groups:
        of_group = _group_scores(tasks, group, by_task, sizes)
        if group.line:
            scores[group.line] = of_group
        shots = _num_fewshot(tasks, group.members)
        yield from ((group.name, tasks[group.members[0]].domain, shots, score) for score in of_group.values())
    for domain in dict.fromkeys(task.domain for task in tasks):
        of_domain = [line for line, members in lines.items() if tasks[members[0]].domain == domain]
        shots = _num_fewshot(tasks, [index for line in of_domain for index in lines[line]])
        of_lines = [scores[line] for line in of_domain]
        for metric in dict.fromkeys(metric for of_line in of_lines for metric in of_line):
            if all(metric in of_line for of_line in of_lines):
                for mean in _combined(tasks, [of_line[metric] for of_line in of_lines], domain_mean):
                    yield MEAN_TASK, domain, shots, mean


def _group_scores(
    tasks: Sequence[TaskFacts], group: TaskGroup, by_task: Sequence[Scores], sizes: Sequence[int]
) -> Scores:
    """What lm-eval lists, and in the same way what it does not list but all tasks have."""
    names = list(dict.fromkeys(name for index in group.members for name in by_task[index]))
    listed, scores = group.listed(names), Scores()
    for name in [*listed, *(name for name in names if name not in listed)]:
        having = [index for index in group.members if name in by_task[index]]
        if name not in listed and len(having) < len(group.members):
            continue
        weights = [sizes[index] for index in having] if group.by_size(name) else None
        combine = functools.partial(group_score, sizes=weights) if weights is not None else domain_mean
        for score in _combined(tasks, [by_task[index][name] for index in having], combine):
            scores[score.metric] = score
    return scores


def group_score(values: Sequence[MetricValue], *, sizes: Sequence[int] | None = None) -> MetricValue:
    """Mean over the items of all tasks of a group, as lm-eval weights MMLU, CMMLU, C-Eval and BBH.

    The standard error is lm-eval's pooled one (`lm_eval.api.metrics.pooled_sample_stderr`):
    √(Σ (n_i − 1) n_i se_i² / (Σ n_i − k)) / √(Σ n_i).

    Args:
        values: of its tasks.
        sizes: items of each task, where some of them are not behind the metric; lm-eval weights by all.
    """
    sizes = sizes or [value.num_items for value in values]
    total = sum(sizes)
    mean = sum(value.value * size for value, size in zip(values, sizes, strict=True)) / total
    pairs = zip(values, sizes, strict=True)
    roots = [value.stderr * math.sqrt((size - 1) * size) for value, size in pairs if value.stderr is not None]
    pooled = len(roots) == len(values) and total > len(values)
    stderr = math.hypot(*roots) / math.sqrt((total - len(values)) * total) if pooled else None
    return MetricValue(values[0].task, values[0].metric, mean, stderr, sum(value.num_items for value in values))


def domain_mean(values: Sequence[MetricValue]) -> MetricValue:
    """Unweighted mean over lines, or over the tasks of a group that lm-eval does not weight; stderr √(Σ se²) / n."""
    errors = [value.stderr for value in values if value.stderr is not None]
    stderr = math.hypot(*errors) / len(values) if len(errors) == len(values) else None
    mean = sum(value.value for value in values) / len(values)
    return MetricValue(values[0].task, values[0].metric, mean, stderr, sum(value.num_items for value in values))


def _combined(
    tasks: Sequence[TaskFacts], members: Sequence[Found], combine: Callable[[Sequence[MetricValue]], MetricValue]
) -> Iterator[Found]:
    """One metric of several members, missing where it is missing of one of them."""
    lost = next((one for one in members if isinstance(one, MissingMetric)), None)
    if lost is not None:
        yield MissingMetric(lost.task, lost.metric, f"task {tasks[lost.task].name} has none")
        return
    yield from checked(combine([one for one in members if isinstance(one, MetricValue)]))


def _num_fewshot(tasks: Sequence[TaskFacts], members: Sequence[int]) -> int:
    shots = {tasks[index].num_fewshot for index in members}
    return shots.pop() if len(shots) == 1 else -1
