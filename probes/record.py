"""The one schema of a measurement, as stored in `probes.jsonl`, and of a metric that could not be computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

METRIC_MISSING = "metric_missing"
"""Kind of the event that names a metric that could not be computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One metric of one task at one checkpoint.

    Attributes:
        run: name of the run.
        step: optimizer steps done.
        tokens: tokens trained on.
        flops: training FLOPs spent (6N-type estimate of `pretrain.flops`).
        suite: name of the suite.
        task: task name; `mean` for a domain's unweighted mean over its tasks.
        domain: domain of the task.
        num_fewshot: examples in the prompt.
        metric: `acc`, `acc_norm`, `gold_bpb`, `correct_prob`, `margin`, …
        value: the metric's value.
        stderr: its standard error over items; null where lm-eval gives none.
        num_items: items scored.
        plan_hash: hash of tasks, items, prompts, tokenizer and packing; another hash is another curve.
        config_hash: hash of the run's resolved configuration.
        seconds: wall time of scoring the whole suite.
    """

    run: str
    step: int
    tokens: int
    flops: float
    suite: str
    task: str
    domain: str
    num_fewshot: int
    metric: str
    value: float
    stderr: float | None
    num_items: int
    plan_hash: str
    config_hash: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The row of `probes.jsonl`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingMeasurement:
    """A metric of one task that could not be computed at one checkpoint, as stored in `missing.jsonl`.

    Attributes:
        step: optimizer steps done.
        suite: name of the suite.
        plan_hash: as in `Measurement`.
        task: task name, group, or `mean`, as in `Measurement`.
        domain: domain of the task.
        num_fewshot: examples in the prompt.
        metric: its name.
        reason: what went wrong, a phrase on one line.
    """

    step: int
    suite: str
    plan_hash: str
    task: str
    domain: str
    num_fewshot: int
    metric: str
    reason: str

    def sentence(self) -> str:
        """What a person reads."""
        of = f"the mean of domain {self.domain}" if self.task == "mean" else f"task {self.task}"
        return f"Metric {self.metric} of {of} is missing at step {self.step}: {self.reason}."

    def to_json(self) -> dict[str, Any]:
        """The row of `missing.jsonl`."""
        return dataclasses.asdict(self)
