"""Scoring weights that lie on disk, beside training or without any: what `score` and `watch` have in common.

Every rank scores; rank 0 alone knows lm-eval, the plan's requests and the files. A suite is scored slice by
slice, so that one that is interrupted goes on where it was; slices are whole rows, which changes no number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pretrain.config.run import ParallelSection, RunConfig
from pretrain.engine.agree import failing_together
from pretrain.engine.base import CheckpointScorer, PackedRows, TokenLogProbs
from pretrain.engine.build import build_scorer, check_scorer
from pretrain.engine.job import Job
from pretrain.errors import ConfigError, FinelineError
from probes.pack import digest_rows
from probes.partial import PartialAnswers
from probes.suite import Limit
from probes.target import Target

SLICE_ROWS = 64
"""Rows of a slice for each process."""

KEYS: Mapping[str, str] = {
    "suite": "path",
    "task_paths": "list of paths",
    "data_dir": "path",
    "limit": "limit",
    "tokens_per_row": "whole number",
    "plan": "path",
    "allow_code_execution": "flag",
    "tokenizer": "path",
    "precision": "text",
    "slice_rows": "whole number",
    "parallel.tensor": "whole number",
    "parallel.pipeline": "whole number",
    "parallel.virtual_pipeline": "whole number",
    "parallel.context": "whole number",
    "parallel.sequence": "flag",
}
"""Arguments that `score` and `watch` share, with the kind of their value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is scored, and how; what is None is as in the run, or the default of the configuration.

    Attributes:
        suite: name or file of a suite.
        task_paths: folders with task YAML files.
        data_dir: folder of data sets.
        limit: items per task at most, or below 1 a share of them.
        num_fewshot: examples in every prompt, in place of the suite's; of `score` alone.
        tokens_per_row: token budget of a row.
        plan: folder of a plan compiled before.
        allow_code_execution: programs that the model writes may be run.
        tokenizer: a `tokenizer.model`.
        precision: `bf16` or `fp32`.
        slice_rows: rows that each process scores between two visits to the disk.
        parallel: the scorer's own layout.
    """

    suite: str | None = None
    task_paths: list[str] | None = None
    data_dir: str | None = None
    limit: Limit | None = None
    num_fewshot: int | None = None
    tokens_per_row: int | None = None
    plan: str | None = None
    allow_code_execution: bool | None = None
    tokenizer: str | None = None
    precision: str | None = None
    slice_rows: int = SLICE_ROWS
    parallel: ParallelSection = field(default_factory=ParallelSection)

    @classmethod
    def from_keys(cls, values: Mapping[str, Any]) -> Settings:
        """From parsed `key=value` arguments; others than `KEYS` are left alone.

        Raises:
            ConfigError: a precision that does not exist.
        """
        if values.get("precision", "fp32") not in ("bf16", "fp32"):
            raise ConfigError(f"precision={values['precision']} is unknown. Allowed: bf16, fp32.")
        prefix = "parallel."
        parallel = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        own = {key: values[key] for key in KEYS if key in values and not key.startswith(prefix)}
        return cls(**own, num_fewshot=values.get("num_fewshot"), parallel=ParallelSection(**parallel))

    def with_run(self, config: RunConfig) -> Settings:
        """The same, completed from a run's configuration; paths in it count from the working directory."""
        probe = config.probe
        return Settings(
            suite=self.suite or probe.suite,
            task_paths=probe.task_paths if self.task_paths is None else self.task_paths,
            data_dir=self.data_dir or probe.data_dir,
            limit=probe.limit if self.limit is None else self.limit,
            tokens_per_row=self.tokens_per_row or probe.tokens_per_row,
            num_fewshot=self.num_fewshot,
            plan=self.plan or (probe.plan if self.suite is None and self.num_fewshot is None else None),
            allow_code_execution=(
                probe.allow_code_execution if self.allow_code_execution is None else self.allow_code_execution
            ),
            tokenizer=self.tokenizer,
            precision=self.precision or config.precision.compute,
            slice_rows=self.slice_rows,
            parallel=self.parallel,
        )


def open_scorer(target: Target, settings: Settings, job: Job) -> CheckpointScorer:
    """A scorer for models of the target's sizes, without weights. Every rank calls it.

    Raises:
        ConfigError: the layout does not fit the model or the number of processes; all problems at once.
    """
    config = RunConfig(parallel=settings.parallel)
    config.precision.compute = settings.precision or target.compute
    config.train.sequence_length = target.max_length
    if target.config is not None:
        config.precision.tf32 = target.config.precision.tf32
        config.engine.transformer_engine = target.config.engine.transformer_engine
    problems = check_scorer(config, target.spec, world_size=job.world_size)
    if problems:
        raise ConfigError(problems)
    return build_scorer(config, target.spec, job.device)


def describe_layout(settings: Settings, job: Job) -> str:
    """What of the layout may show in the last bits of a number."""
    parallel = settings.parallel
    return (
        f"{job.world_size} processes, tensor {parallel.tensor}, pipeline {parallel.pipeline}, virtual "
        f"{parallel.virtual_pipeline}, context {parallel.context}, sequence {parallel.sequence}, "
        f"{settings.precision}, {job.device.type}"
    )


def load_weights(scorer: CheckpointScorer, target: Target, job: Job) -> str | None:
    """Gives the scorer a checkpoint's weights; why it could not, on every rank, if it could not on one.

    Args:
        scorer: on every rank.
        target: where the weights lie.
        job: the processes.
    """
    problem: str | None = None
    try:
        job.everywhere(lambda: scorer.load(target.open()), what="Reading the weights")
    except FinelineError as error:
        problem = str(error)
    return job.broadcast(problem)


def score_in_slices(
    scorer: CheckpointScorer,
    rows: PackedRows,
    partial: PartialAnswers,
    job: Job,
    *,
    slice_rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TokenLogProbs, float]:
    """Scores what `partial` has not yet. Every rank calls it; on ranks other than 0 the answer is incomplete.

    Args:
        scorer: with weights.
        rows: of the plan, on every rank.
        partial: what is scored already; only rank 0's counts.
        job: the processes.
        slice_rows: rows of a slice for each process.
        progress: told rows done and rows in all after each slice, on rank 0.

    Returns:
        The answers to all rows, the same bits as of one call of `scorer.score`, and the seconds it took in all.
    """
    missing: list[int] = job.once(partial.missing_rows)
    for index in range(0, len(missing), slice_rows * job.world_size):
        numbers = missing[index : index + slice_rows * job.world_size]
        with failing_together():
            part, pair_ids = select_rows(rows, numbers)
            start = time.perf_counter()
            scored = scorer.score(part)
        seconds = time.perf_counter() - start

        def keep(numbers: list[int] = numbers, ids: np.ndarray = pair_ids, seconds: float = seconds) -> None:
            partial.add(numbers, ids, scored, seconds=seconds)  # noqa: B023 (called at once)

        job.once(keep)
        if job.rank == 0:
            progress(min(len(rows.rows), len(rows.rows) - len(missing) + index + len(numbers)), len(rows.rows))
    return partial.answers(), partial.seconds


def select_rows(rows: PackedRows, numbers: list[int]) -> tuple[PackedRows, np.ndarray]:
    """Some rows as a plan of their own, and which of the whole plan's pairs its pairs are.

    Args:
        rows: the whole plan's.
        numbers: indices into `rows.rows`.

    Returns:
        Rows whose pair ids are 0 … n - 1, and int64 [n], the whole plan's id of each.
    """
    chosen = [rows.rows[number] for number in numbers]
    pair_ids = np.concatenate([row.pair_id_P for row in chosen]) if chosen else np.zeros(0, np.int64)
    ends = np.cumsum([len(row.pair_id_P) for row in chosen])
    renumbered = []
    for row, end in zip(chosen, ends, strict=True):
        own = np.arange(end - len(row.pair_id_P), end, dtype=np.int64)
        fields = {name: getattr(row, name) for name in row.__slots__}
        renumbered.append(type(row)(**{**fields, "pair_id_P": own}))
    return PackedRows(renumbered, len(pair_ids), digest_rows(renumbered)), pair_ids
