"""Scoring of downstream tasks at saves."""

from __future__ import annotations

from dataclasses import dataclass, field

LIMIT = "a whole number of items of at least 1, or a share of them between 0 and 1"
"""What a limit on the items of a task may be; lm-eval's rule, but that it reads 1.0 as one item."""


def is_limit(value: object) -> bool:
    """Whether a value is a limit on the items of a task, see `LIMIT`."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value >= 1
    return isinstance(value, float) and 0 < value < 1


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    mode: str = "inline"
    """`inline`: at every save, on the live model; `beside`: by `python -m probes watch RUN`, a job of its own whose
    scores are shown as they come; `off`: not at all."""
    suite: str = "demo"
    """A suite of `configs/probes`, or the path of a YAML file of the same form."""
    task_paths: list[str] = field(default_factory=list)
    """Further folders with lm-eval task YAML files, looked up before the bundled ones and lm-eval's own."""
    data_dir: str | None = None
    """Folder of data sets, `<dataset_path>/<dataset_name or "default">/<split>.{parquet,jsonl,jsonl.gz}`; tasks whose
    data set is not there read it from the cache of `datasets`."""
    limit: int | float | None = None
    """Items per task at most, or below 1 the share of a task's items, rounded up; null is what the suite says."""
    milestones: str | None = None
    """With a duration, such as `10_000 steps`: every save scores the suite's fast tier (a fixed subset of its items),
    and multiples of the duration that are saves, the first save and the last score all of it. Null: all, always."""
    budget: str | None = None
    """With a share of wall time, such as `1%`: each save scores all of the suite, its fast tier or nothing, by what the
    share allows at the speed measured; an event says which, and what was left out."""
    plan: str | None = None
    """Folder of a plan compiled before by `python -m probes compile`, for runs without the data sets; it must agree
    with suite, limit, tokens_per_row, tokenizer and sequence length of the run. Null compiles at the start."""
    fast_plan: str | None = None
    """The same for the fast tier, where milestones or a budget ask for one."""
    references: list[str] = field(default_factory=list)
    """Runs to hold this one against at every save: run directories, CSV or Parquet files, `published:pythia`, … as
    `python -m probes state --references` takes them. Empty holds it against its own past."""
    allow_code_execution: bool = False
    """Run programs that the model writes (HumanEval, MBPP with `generate: true` in the suite): in processes of their
    own with limits of time, memory and files, but with this user's rights and network."""
    tokens_per_row: int = 4096
    """Token budget of one packed row; more needs more memory and keeps a GPU busier."""
