"""Which tasks are parts of one large benchmark (MMLU's subjects, BLiMP's phenomena), by their names and their number.

Parts of one benchmark rise and swing together, so that many of them tell little more than one of them does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from probes.dynamics.table import Series
from probes.dynamics.tasks import is_twin

LARGE_BENCHMARK = 5
"""From so many parts on a benchmark is a large one."""


def benchmark_of(task: str) -> str:
    """The name that the parts of a benchmark share: up to the first dash or underscore, `fineline_` left out."""
    return task.removeprefix("fineline_").replace("-", "_").split("_")[0]


def parts_of_large_benchmarks(series: Iterable[Series]) -> dict[Series, str]:
    """The series that are one of five or more parts of a benchmark, with its name; twins count as one part."""
    groups: dict[tuple[str, str, int], list[Series]] = defaultdict(list)
    for one in series:
        groups[benchmark_of(one.task), one.metric, one.num_fewshot].append(one)
    found: dict[Series, str] = {}
    for (benchmark, _, _), members in groups.items():
        parts: list[str] = []
        for member in members:
            if len(parts) < LARGE_BENCHMARK and not any(is_twin(member.task, part) for part in parts):
                parts.append(member.task)
        if len(parts) == LARGE_BENCHMARK:
            found.update(dict.fromkeys(members, benchmark))
    return found
