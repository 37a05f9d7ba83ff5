"""Rank 0's part of scoring beside training: the plan, compiled or found compiled, and what turns answers into rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ProbeError
from probes.beside import Settings
from probes.harness import Harness, load_harness, restore_harness
from probes.metrics import RECORD_ONLY
from probes.plan import Plan, PlanSettings, compile_plan, hash_plan
from probes.record import Measurement
from probes.request import ProbeTokenizer
from probes.score import Answers, CheckpointFacts, gather_answers, measure
from probes.suite import Suite, load_suite

DEFAULT_SUITE = "demo"
DEFAULT_TOKENS_PER_ROW = 4096


class Examiner:
    """A suite ready to be put to models of one tokenizer and context length.

    Args:
        settings: suite, limits, packing, or a plan compiled before.
        tokenizer: the models'.
        max_length: their longest input in tokens.
        add_bos: prompts begin with `<s>`.
        cache: folder of plans by hash, where one is looked for and left; None compiles in memory.

    Raises:
        ProbeError: the suite cannot be scored, or the plan is another than was asked for.
    """

    def __init__(
        self, settings: Settings, tokenizer: ProbeTokenizer, *, max_length: int, add_bos: bool, cache: Path | None
    ) -> None:
        packing = PlanSettings(
            max_length=max_length,
            add_bos=add_bos,
            tokens_per_row=settings.tokens_per_row or DEFAULT_TOKENS_PER_ROW,
        )
        suite = load_suite(settings.suite or DEFAULT_SUITE)
        self.plan: Plan
        self._harness: Harness
        if settings.plan is not None:
            self._restore(Path(settings.plan), settings, suite, tokenizer, packing)
        else:
            self._compile(settings, suite, tokenizer, packing, cache)

    def examine(
        self, scored: TokenLogProbs, facts: CheckpointFacts, *, seconds: float
    ) -> tuple[list[Measurement], Answers]:
        """Measurements of one checkpoint, and the answers to each request.

        Raises:
            ProbeError: a log-probability is not finite.
        """
        answers = gather_answers(self.plan, scored)
        return measure(self.plan, answers, self._harness, facts, seconds=seconds), answers

    def describe(self) -> dict[str, Any]:
        """The plan in a few figures, as training's event `probe_plan` has them."""
        plan = self.plan
        skipped = plan.skipped[:20] + ([f"and {len(plan.skipped) - 20} more"] if len(plan.skipped) > 20 else [])
        named = {"suite": plan.suite, "plan_hash": plan.plan_hash, **plan.stats}
        return {**named, "chance": plan.chance(), "skipped": skipped}

    def _restore(
        self, folder: Path, settings: Settings, suite: Suite, tokenizer: ProbeTokenizer, packing: PlanSettings
    ) -> None:
        self.plan = Plan.load(folder)
        if settings.suite is None:
            suite = Suite(self.plan.stored.name, self.plan.stored.specs)
        found = self.plan.differences(
            suite=suite, limit=settings.limit, tokenizer=tokenizer.fingerprint, settings=packing
        )
        if found:
            raise ProbeError(
                f"plan={folder} is not the one asked for: {'; '.join(found)}. Compile it again with these settings, or "
                f"leave plan= out."
            )
        self._harness = restore_harness(self.plan.stored, task_paths=settings.task_paths or ())

    def _compile(
        self,
        settings: Settings,
        suite: Suite,
        tokenizer: ProbeTokenizer,
        packing: PlanSettings,
        cache: Path | None,
    ) -> None:
        self._harness = load_harness(
            suite, task_paths=settings.task_paths or (), data_dir=settings.data_dir, limit=settings.limit
        )
        requests = self._harness.capture(tokenizer, add_bos=packing.add_bos, max_length=packing.max_length)
        folder = cache / hash_plan(requests, tokenizer, packing) if cache is not None else None
        found = _load_if_sound(folder)
        self.plan = found if found is not None else compile_plan(requests, tokenizer, packing)
        if folder is not None and found is None:
            self.plan.save(folder)


def _load_if_sound(folder: Path | None) -> Plan | None:
    try:
        return Plan.load(folder) if folder is not None and folder.is_dir() else None
    except ProbeError:
        return None


def results_table(measurements: Sequence[Measurement]) -> str:
    """Task, metric, value ± standard error and items, one line each, for a terminal; of metrics what views show."""
    rows = [("task", "metric", "value", "stderr", "items")]
    for row in measurements:
        if row.metric in RECORD_ONLY:
            continue
        name = row.task if row.task != "mean" else f"mean of {row.domain}"
        stderr = "" if row.stderr is None else f"± {_number(row.stderr)}"
        rows.append((name, row.metric, _number(row.value), stderr, str(row.num_items)))
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    lines = []
    for cells in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
        right = "  ".join(cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True))
        lines.append(f"{left}  {right}".rstrip())
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
