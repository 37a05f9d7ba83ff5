"""lm-eval's groups: which tasks of a suite they hold, and how a group's scores are made of its tasks' scores.

Plain data without lm-eval, kept in the compiled suite; the arithmetic is in `probes.aggregate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GroupMetric:
    """One entry of a group's `aggregate_metric_list`.

    Attributes:
        metric: lm-eval's name without a filter.
        filters: names of filters; None is every filter that its tasks have.
        by_size: tasks count by their number of items (`weight_by_size`), else equally.
    """

    metric: str
    filters: tuple[str, ...] | None
    by_size: bool


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """A group, or a line of a suite that brings several tasks without being one (a tag).

    Attributes:
        name: lm-eval's name.
        line: the line of the suite whose score this is; empty for nested groups.
        members: indices of its tasks in the suite, those of nested groups too.
        metrics: what lm-eval aggregates; empty where it aggregates nothing.
    """

    name: str
    members: tuple[int, ...]
    metrics: tuple[GroupMetric, ...] = ()
    line: str = ""

    def listed(self, metrics: Iterable[str]) -> dict[str, bool]:
        """Which of these metrics (`name` or `name,filter`) lm-eval aggregates here, and whether by size."""
        found: dict[str, bool] = {}
        for name in metrics:
            metric, _, filter_name = name.partition(",")
            for entry in self.metrics:
                if entry.metric == metric and (entry.filters is None or (filter_name or "none") in entry.filters):
                    found[name] = entry.by_size
        return found

    def by_size(self, metric: str) -> bool:
        """Whether tasks count by size in a metric; what lm-eval does not list goes the way of what it lists."""
        own = self.listed([metric.removesuffix("_rescaled")])
        return any(own.values()) if own else not self.metrics or any(entry.by_size for entry in self.metrics)

    def to_json(self) -> dict[str, Any]:
        """As stored in a plan."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskGroup:
        """The inverse of `to_json`."""
        metrics = (
            GroupMetric(
                entry["metric"], None if entry["filters"] is None else tuple(entry["filters"]), entry["by_size"]
            )
            for entry in values["metrics"]
        )
        return cls(values["name"], tuple(values["members"]), tuple(metrics), values["line"])


def groups_of_line(
    asked: str, line: str, groups: Sequence[Any], tasks: Sequence[Any], *, first: int
) -> list[TaskGroup]:
    """The groups with scores that a line of a suite brings, the outermost first.

    lm-eval gives no score to groups that list no metric. Of those only the line's own is kept: a domain counts lines.

    Args:
        asked: the task, group or tag that the line asks for.
        line: the line's own name, see `probes.suite.Suite.lines`.
        groups: lm-eval's Groups of the line, nested ones too.
        tasks: lm-eval's Tasks of the line.
        first: index in the suite of the first of these tasks.
    """
    places = {task.config.task: first + number for number, task in enumerate(tasks)}
    found = [
        TaskGroup(
            group.name,
            tuple(places[task.config.task] for task in group.get_all_tasks()),
            tuple(
                GroupMetric(
                    entry.metric, None if entry.filter_list is None else tuple(entry.filter_list), entry.weight_by_size
                )
                for entry in group.aggregate_metric_list or ()
            ),
            line if group.name == asked else "",
        )
        for group in groups
        if group.has_aggregation or group.name == asked
    ]
    if len(tasks) > 1 and asked not in {group.name for group in found}:
        found.append(TaskGroup(asked, tuple(places.values()), line=line))
    return found
