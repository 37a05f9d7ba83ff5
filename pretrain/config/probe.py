"""Scoring of downstream tasks at saves."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    limit: int | None = None
    """Items per task at most; null is what the suite says."""
    plan: str | None = None
    """Folder of a plan compiled before by `python -m probes compile`, for runs without the data sets; it must agree
    with suite, limit, tokens_per_row, tokenizer and sequence length of the run. Null compiles at the start."""
    tokens_per_row: int = 4096
    """Token budget of one packed row; more needs more memory and keeps a GPU busier."""
