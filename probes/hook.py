"""Scores the suite at every save, on the live model.

All ranks call the engine; rank 0 alone knows lm-eval, measures and records. What goes wrong before the first
step stops the run on every rank; a measurement that fails later is an event, and training goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ProbeError
from pretrain.track.names import probe_name
from probes.harness import Harness, load_harness
from probes.metrics import RECORD_ONLY
from probes.plan import Plan, PlanSettings, compile_plan, hash_plan
from probes.record import Measurement
from probes.request import ProbeTokenizer
from probes.score import CheckpointFacts, gather_answers, measure
from probes.store import ProbeStore
from probes.suite import Suite

if TYPE_CHECKING:
    from pretrain.hooks.base import Run, StepReport

PLANS_FOLDER = "plans"


class ProbeHook:
    """Implements `pretrain.hooks.base.Hook`.

    Args:
        suite: what to score.
        tokenizer: the run's tokenizer.
        max_length: `train.sequence_length`, the longest model input in tokens.
        flops_per_token: training FLOPs of one token, to date measurements by compute.
        multiple: rows are padded to a multiple of it, which `parallel.tensor` must divide under sequence parallelism.
    """

    def __init__(
        self,
        *,
        suite: Suite,
        tokenizer: ProbeTokenizer,
        max_length: int,
        flops_per_token: float,
        multiple: int = 16,
    ) -> None:
        self.suite = suite
        self.plan: Plan | None = None
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._flops_per_token = flops_per_token
        self._multiple = multiple
        self._harness: Harness | None = None
        self._store: ProbeStore | None = None
        self._complete_steps: set[int] = set()

    def on_start(self, run: Run) -> None:
        """Compiles the plan on rank 0, or finds it compiled; every rank then holds it.

        Raises:
            ProbeError: on every rank, for a suite or task that cannot be scored.
        """
        start = time.perf_counter()
        plan_hash, complete_steps = run.job.once(lambda: self._compile(run))
        self._complete_steps = set(complete_steps)
        if self.plan is None:
            self.plan = Plan.load(_plan_folder(run, plan_hash))
        run.job.barrier()
        if run.job.rank == 0:
            self._report_plan(run, time.perf_counter() - start)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing: the suite is scored at saves."""

    def on_save(self, run: Run) -> None:
        """Scores the suite on the live model, unless this step has been measured or is off the calendar."""
        assert self.plan is not None, "on_start has not been called"
        step = run.state.step
        if step in self._complete_steps or not run.calendar.is_due(step):
            return
        start = time.perf_counter()
        scored = run.engine.score(self.plan.rows)
        seconds = time.perf_counter() - start
        self._complete_steps.add(step)
        if run.job.rank == 0:
            self._measure(run, scored, seconds)

    def on_end(self, run: Run) -> None:
        """Nothing: every measurement is on disk already."""

    def _compile(self, run: Run) -> tuple[str, list[int]]:
        """Rank 0's part of the start: the plan's hash, and the steps that are measured under it already."""
        config = run.config
        probe = config.probe
        self._harness = load_harness(
            self.suite, task_paths=probe.task_paths, data_dir=probe.data_dir, limit=probe.limit
        )
        settings = PlanSettings(
            max_length=self._max_length,
            add_bos=config.tokenizer.add_bos,
            tokens_per_row=config.probe.tokens_per_row,
            multiple=self._multiple,
        )
        requests = self._harness.capture(self._tokenizer, add_bos=settings.add_bos, max_length=settings.max_length)
        folder = _plan_folder(run, hash_plan(requests, self._tokenizer, settings))
        self.plan = _load_if_sound(folder)
        if self.plan is None:
            self.plan = compile_plan(requests, self._tokenizer, settings)
            self.plan.save(folder)
        self._store = ProbeStore(run.info.directory)
        self._store.truncate_after(run.info.resume_step)
        return self.plan.plan_hash, sorted(self._store.complete_steps(self.plan))

    def _report_plan(self, run: Run, seconds: float) -> None:
        assert self.plan is not None, "rank 0 has compiled it"
        fields: dict[str, Any] = {"suite": self.plan.suite, "plan_hash": self.plan.plan_hash, **self.plan.stats}
        skipped = self.plan.skipped
        fields["chance"] = self.plan.chance()
        fields["not_computed"] = {task.name: task.not_computed for task in self.plan.tasks if task.not_computed}
        fields["items_without_gold"] = {t.name: t.num_without_gold for t in self.plan.tasks if t.num_without_gold}
        fields["skipped"] = skipped[:20] + ([f"and {len(skipped) - 20} more"] if len(skipped) > 20 else [])
        run.tracker.event("probe_plan", step=run.state.step, seconds=seconds, **fields)

    def _measure(self, run: Run, scored: TokenLogProbs, seconds: float) -> None:
        """Rank 0's half. It may fail without stopping training: this is the prober's one catch-all."""
        assert self.plan is not None and self._store is not None and self._harness is not None, "compiled on rank 0"
        state, start = run.state, time.perf_counter()
        facts = CheckpointFacts(
            run=run.info.name,
            step=state.step,
            tokens=state.tokens,
            flops=state.tokens * self._flops_per_token,
            config_hash=run.info.config_hash,
        )
        try:
            answers = gather_answers(self.plan, scored)
            measurements = measure(self.plan, answers, self._harness, facts, seconds=seconds)
            self._store.write_items(self.plan, answers, step=state.step)
            self._store.append(measurements)
        except Exception as error:  # noqa: BLE001 (task files hold other people's code; the cause is recorded)
            cause = f"{type(error).__name__}: {error}"
            run.tracker.event("probe_failed", step=state.step, suite=self.suite.name, cause=cause)
            return
        run.tracker.log_views(dashboard_values(measurements), step=state.step, tokens=state.tokens)
        run.tracker.event(
            "probe",
            step=state.step,
            suite=self.suite.name,
            seconds=seconds + time.perf_counter() - start,
            score_seconds=seconds,
            tokens=self.plan.num_tokens,
            num_measurements=len(measurements),
        )


def dashboard_values(measurements: Sequence[Measurement]) -> dict[str, float]:
    """What views show: all metrics but those of `probes.metrics.RECORD_ONLY`, by their stable names."""
    return {
        probe_name(row.domain, row.task, row.metric): row.value for row in measurements if row.metric not in RECORD_ONLY
    }


def _plan_folder(run: Run, plan_hash: str) -> Path:
    return run.info.directory / PLANS_FOLDER / plan_hash


def _load_if_sound(folder: Path) -> Plan | None:
    """A plan compiled before; None if there is none, or a damaged one, which is then compiled anew."""
    try:
        return Plan.load(folder) if folder.is_dir() else None
    except ProbeError:
        return None
