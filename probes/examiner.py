"""Rank 0's part of scoring beside training: the plan, compiled or found compiled, and what turns answers into rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pretrain.config.probe import ProbeConfig
from pretrain.engine.base import TokenLogProbs
from probes.beside import Settings
from probes.compile import Wanted, plan_for
from probes.metrics import RECORD_ONLY
from probes.plan import Plan, PlanSettings
from probes.record import Measurement, MissingMeasurement
from probes.request import ProbeTokenizer
from probes.score import Answers, CheckpointFacts, gather_answers, measure
from probes.suite import Suite, load_suite, names_with_shots


class Examined(NamedTuple):
    """What an examination of one checkpoint gives.

    Attributes:
        measurements: rows of `probes.jsonl`.
        answers: to each request.
        missing: metrics that could not be computed.
    """

    measurements: list[Measurement]
    answers: Answers
    missing: list[MissingMeasurement]


class Examiner:
    """A suite ready to be put to models of one tokenizer and context length.

    Args:
        settings: suite, limits, packing, or a plan compiled before.
        tokenizer: the models'.
        max_length: their longest input in tokens.
        add_bos: prompts begin with `<s>`.
        cache: folder of plans by hash, where one is looked for and left; None compiles in memory.

    Attributes:
        plan: the compiled suite.
        seconds: wall time of compiling or opening it.

    Raises:
        ProbeError: the suite cannot be scored, or the plan is another than was asked for.
    """

    def __init__(
        self, settings: Settings, tokenizer: ProbeTokenizer, *, max_length: int, add_bos: bool, cache: Path | None
    ) -> None:
        wanted = Wanted(
            suite=_suite(settings),
            tokenizer=tokenizer,
            settings=PlanSettings(
                max_length=max_length,
                add_bos=add_bos,
                tokens_per_row=settings.tokens_per_row or ProbeConfig().tokens_per_row,
            ),
            task_paths=settings.task_paths or (),
            data_dir=settings.data_dir,
            limit=settings.limit,
            allow_code_execution=bool(settings.allow_code_execution),
        )
        start = time.perf_counter()
        self.plan, self._harness = plan_for(wanted, compiled=settings.plan, key="plan", plans=cache)
        self.seconds = time.perf_counter() - start

    def examine(
        self,
        scored: TokenLogProbs,
        facts: CheckpointFacts,
        *,
        seconds: float,
        texts: Mapping[int, Sequence[str]] | None = None,
    ) -> Examined:
        """Measures one checkpoint; `texts` as for `probes.score.measure`.

        Raises:
            ProbeError: a log-probability is not finite.
        """
        answers = gather_answers(self.plan, scored)
        missing: list[MissingMeasurement] = []
        found = measure(self.plan, answers, self._harness, facts, seconds=seconds, texts=texts, missing=missing)
        return Examined(found, answers, missing)


def results_table(measurements: Sequence[Measurement]) -> str:
    """Task, metric, value ± standard error and items, one line each, for a terminal; of metrics what views show."""
    shown = names_with_shots((row.task, row.num_fewshot) for row in measurements)
    rows = [("task", "metric", "value", "stderr", "items")]
    for row in measurements:
        if row.metric in RECORD_ONLY:
            continue
        name = shown[row.task, row.num_fewshot] if row.task != "mean" else f"mean of {row.domain}"
        stderr = "" if row.stderr is None else f"± {_number(row.stderr)}"
        rows.append((name, row.metric, _number(row.value), stderr, str(row.num_items)))
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    lines = []
    for cells in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
        right = "  ".join(cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True))
        lines.append(f"{left}  {right}".rstrip())
    return "\n".join(lines)


def _suite(settings: Settings) -> Suite:
    """The suite asked for, else that of the plan, else the configuration's default; with the examples asked for."""
    suite = _named_suite(settings)
    return suite if settings.num_fewshot is None else suite.at_shots(settings.num_fewshot)


def _named_suite(settings: Settings) -> Suite:
    if settings.suite is None and settings.plan is not None and Path(settings.plan).is_dir():
        stored = Plan.load(Path(settings.plan)).stored
        return Suite(stored.name, stored.specs)
    return load_suite(settings.suite or ProbeConfig().suite)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
