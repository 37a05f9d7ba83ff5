"""Scores the suite at every save, on the live model.

All ranks call the engine; rank 0 alone knows lm-eval, measures and records. What goes wrong before the first
step stops the run on every rank; a measurement that fails later is an event, and training goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.engine.base import TokenLogProbs
from pretrain.errors import ProbeError
from pretrain.track.names import probe_name
from probes.compile import Wanted, compile_suite, load_if_sound, open_plan
from probes.harness import Harness
from probes.metrics import RECORD_ONLY
from probes.plan import Plan, PlanSettings
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
        """Compiles the plan on rank 0, finds it compiled, or takes `probe.plan`; every rank then holds it.

        Raises:
            ProbeError: on every rank, for a suite or task that cannot be scored, or a plan that does not fit the run.
        """
        start = time.perf_counter()
        plan_hash, complete_steps = run.job.once(lambda: self._compile(run))
        self._complete_steps = set(complete_steps)
        self._load(run, plan_hash)
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
        scored = self._score(run, self.plan)
        seconds = time.perf_counter() - start
        if scored is None:
            return
        self._complete_steps.add(step)
        if run.job.rank == 0:
            self._measure(run, scored, seconds)

    def on_end(self, run: Run) -> None:
        """Nothing: every measurement is on disk already."""

    def _score(self, run: Run, plan: Plan) -> TokenLogProbs | None:
        """The answers; None on every rank if one rank failed, which is an event. The engine keeps ranks in step."""
        scored: TokenLogProbs | None = None
        cause = ""
        try:
            scored = run.engine.score(plan.rows)
        except Exception as error:  # noqa: BLE001 (out of memory above all; training must go on, the cause is recorded)
            cause = f"{type(error).__name__}: {error}"
        failed = run.job.maximum(run.job.rank + 1 if cause else 0)
        if not failed:
            return scored
        if cause and run.job.rank:
            print(f"rank {run.job.rank} could not score step {run.state.step}: {cause}", file=sys.stderr, flush=True)
        if run.job.rank == 0:
            cause = cause or f"rank {failed - 1} failed; its output says why"
            run.tracker.event("probe_failed", step=run.state.step, suite=self.suite.name, cause=cause)
        return None

    def _compile(self, run: Run) -> tuple[str, list[int]]:
        """Rank 0's part of the start: the plan's hash, and the steps that are measured under it already."""
        probe, plans = run.config.probe, run.info.directory / PLANS_FOLDER
        wanted = Wanted(
            suite=self.suite,
            tokenizer=self._tokenizer,
            settings=PlanSettings(
                max_length=self._max_length,
                add_bos=run.config.tokenizer.add_bos,
                tokens_per_row=probe.tokens_per_row,
                multiple=self._multiple,
            ),
            task_paths=probe.task_paths,
            data_dir=probe.data_dir,
            limit=probe.limit,
        )
        if probe.plan is None:
            self.plan, self._harness = compile_suite(wanted, plans=plans)
        else:
            self.plan, self._harness = open_plan(probe.plan, wanted)
            if load_if_sound(plans / self.plan.plan_hash) is None:
                self.plan.save(plans / self.plan.plan_hash)  # the record of the run needs it, wherever the other goes
        self._store = ProbeStore(run.info.directory)
        self._store.truncate_after(run.info.resume_step)
        return self.plan.plan_hash, sorted(self._store.complete_steps(self.plan))

    def _load(self, run: Run, plan_hash: str) -> None:
        """Reads rank 0's plan on every other rank; one that cannot stops all of them."""
        problem = ""
        if self.plan is None:
            try:
                self.plan = Plan.load(_plan_folder(run, plan_hash))
            except ProbeError as error:
                problem = str(error)
        failed = run.job.maximum(run.job.rank + 1 if problem else 0)
        if failed:
            raise ProbeError(problem or f"Rank {failed - 1} cannot read the plan; its own message says why.")

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
        """Rank 0's half; it may fail without stopping training, as scoring may."""
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
