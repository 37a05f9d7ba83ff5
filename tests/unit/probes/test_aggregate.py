"""Groups as lm-eval scores them; domains that count each line of a suite once."""

from __future__ import annotations

import numpy as np
import pytest

from probes.aggregate import aggregates, group_score
from probes.groups import TaskGroup
from probes.metrics import MetricValue, mean_and_stderr
from probes.request import TaskFacts


def facts(name: str, line: str = "", *, domain: str = "d", shots: int = 0) -> TaskFacts:
    return TaskFacts(name, domain, shots, 1, line=line or name)


def value(task: int, number: float, stderr: float | None = 0.1, *, metric: str = "acc", items: int = 10) -> MetricValue:
    return MetricValue(task, metric, number, stderr, items)


def test_a_group_scores_as_in_lm_eval() -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    rng = np.random.default_rng(3)
    items = [rng.integers(0, 2, size).astype(float) for size in (40, 100, 7)]
    values = [MetricValue(i, "acc", *mean_and_stderr(x), len(x)) for i, x in enumerate(items)]
    score = group_score(values)
    sizes = [len(x) for x in items]
    assert score.value == pytest.approx(aggregate_subtask_metrics([v.value for v in values], sizes), rel=1e-12)
    assert score.value == pytest.approx(np.concatenate(items).mean(), rel=1e-12)
    assert score.stderr == pytest.approx(pooled_sample_stderr([v.stderr for v in values], sizes), rel=1e-12)
    assert score.num_items == 147


def test_a_domain_counts_a_group_once() -> None:
    tasks = [facts("s1", "group", shots=5), facts("s2", "group", shots=5), facts("alone")]
    values = [value(0, 0.2, items=30), value(1, 0.6, items=10), value(2, 0.9), value(2, 0.5, metric="acc_norm")]
    group, mean = aggregates(tasks, [TaskGroup("group", (0, 1), line="group")], values)
    assert group[:3] == ("group", "d", 5) and group[3].value == pytest.approx(0.3)
    assert mean[:3] == ("mean", "d", -1) and mean[3].value == pytest.approx((0.3 + 0.9) / 2)
    assert mean[3].stderr == pytest.approx(np.hypot(group[3].stderr, 0.1) / 2)


def test_metrics_that_a_member_lacks_and_unknown_errors_are_left_out() -> None:
    tasks = [facts("a"), facts("b")]
    found = list(aggregates(tasks, [], [value(0, 0.2, None), value(1, 0.4), value(1, 3.0, metric="perplexity")]))
    assert [(name, v.metric, v.value, v.stderr) for name, _, _, v in found] == [
        ("mean", "acc", pytest.approx(0.3), None)
    ]
