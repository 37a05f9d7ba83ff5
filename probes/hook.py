"""Scores at saves, on the live model: which tier a save is worth, and nothing else.

Without a budget the full suite is scored at every save, or, with `probe.milestones`, its fast tier at every save and
all of it at milestones and at the end. With `probe.budget` rank 0 chooses by the clock, and every rank hears it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint.calendar import milestone_steps
from pretrain.units import parse_share
from probes.budget import Budget, Tier
from probes.compile import Wanted
from probes.plan import PlanSettings
from probes.request import ProbeTokenizer
from probes.store import ProbeStore
from probes.suite import Suite
from probes.tier import LiveTier, score_together

if TYPE_CHECKING:
    from pretrain.hooks.base import Run, StepReport

_FORWARD_SHARE = 1 / 3
"""Of the time of a training step, before one has been timed: backward costs twice what forward costs."""


class ProbeHook:
    """Implements `pretrain.hooks.base.Hook`.

    Args:
        suite: what to score.
        tokenizer: the run's tokenizer.
        max_length: `train.sequence_length`, the longest model input in tokens.
        flops_per_token: training FLOPs of one token, to date measurements by compute.
    """

    def __init__(
        self,
        *,
        suite: Suite,
        tokenizer: ProbeTokenizer,
        max_length: int,
        flops_per_token: float,
    ) -> None:
        self.suite = suite
        self.tiers: dict[str, LiveTier] = {}
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._flops_per_token = flops_per_token
        self._store: ProbeStore | None = None
        self._milestones: frozenset[int] | None = None
        self._budget: Budget | None = None
        self._started = 0.0
        self._steps = 0
        self._step_seconds = 0.0

    def on_start(self, run: Run) -> None:
        """Compiles the plans on rank 0, or finds them compiled; every rank then holds them.

        Raises:
            ProbeError: on every rank, for a suite or task that cannot be scored, or a plan that does not fit the run.
        """
        probe = run.config.probe
        if probe.milestones is not None:
            self._milestones = milestone_steps(
                probe.milestones, total_steps=run.info.total_steps, batch_sizes=run.config.batch_sizes
            )
        run.job.once(lambda: self._open_store(run))
        names = ["full", "fast"] if probe.budget is not None or probe.milestones is not None else ["full"]
        for name in names:
            self.tiers[name] = self._tier(run, name)
            self.tiers[name].prepare(run, self._store)
        self._started = time.perf_counter()
        if probe.budget is not None:
            tiers = [Tier(name, tier.plan.num_tokens) for name, tier in self.tiers.items()]
            self._budget = Budget(parse_share(probe.budget, key="probe.budget"), tiers)
            if any(not tier.is_complete(run.state.step) for tier in self.tiers.values()):
                self._calibrate(run)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Times training, which a budget is a share of."""
        self._steps += 1
        self._step_seconds += report.seconds

    def on_save(self, run: Run) -> None:
        """Scores the live model, unless this step has been measured or is off the calendar."""
        assert self.tiers, "on_start has not been called"
        step = run.state.step
        if not run.calendar.is_due(step):
            return
        for name in self._due(run):
            tier = self.tiers[name]
            generate = name == "full" and self._is_milestone(run)
            if not tier.is_complete(step, written=generate):
                took = tier.probe(run, self._store, flops_per_token=self._flops_per_token, generate=generate)
                if self._budget is not None:
                    self._budget.record(tier.plan.num_tokens, took.scoring)
                    self._budget.record_generation(name, took.generating)

    def on_end(self, run: Run) -> None:
        """Nothing: every measurement is on disk already."""

    def _due(self, run: Run) -> list[str]:
        """Tiers to score at this save; the same on every rank."""
        step = run.state.step
        if self._budget is not None:
            if any(tier.is_complete(step) for tier in self.tiers.values()):
                return []
            return list(run.job.once(lambda: self._affordable(run)))
        if self._milestones is None:
            return ["full"]
        return ["fast", "full"] if step in self._milestones else ["fast"]

    def _is_milestone(self, run: Run) -> bool:
        """Whether a full suite's answers are generated, too: where full suites are rare, or at the end."""
        return self._milestones is not None or self._budget is not None or run.state.step == run.info.total_steps

    def _affordable(self, run: Run) -> list[str]:
        """Rank 0's choice under the budget, and an event that says what was chosen and what was left out."""
        assert self._budget is not None
        step, elapsed = run.state.step, time.perf_counter() - self._started
        remaining_steps = run.info.total_steps - step
        choice = self._budget.choose(
            elapsed_seconds=elapsed,
            remaining_seconds=remaining_steps * self._seconds_per_step(run),
            remaining_saves=sum(save >= step for save in run.calendar.steps()),
        )
        run.tracker.event(
            "probe_budget",
            step=step,
            suite=self.suite.name,
            scored=choice.tier or "nothing",
            left_out=[name for name in self.tiers if name != choice.tier],
            allowed_seconds=choice.allowed_seconds,
            predicted_seconds=choice.predicted_seconds,
            spent_seconds=self._budget.spent_seconds,
            spent_share=self._budget.spent_seconds / elapsed if elapsed else 0.0,
        )
        return [choice.tier] if choice.tier else []

    def _seconds_per_step(self, run: Run) -> float:
        """As measured; before the first step from the speed of scoring, which is a step's forward pass."""
        assert self._budget is not None
        if self._steps:
            return self._step_seconds / self._steps
        tokens = run.config.batch_sizes.full_step_tokens
        return self._budget.predict(tokens) / _FORWARD_SHARE

    def _calibrate(self, run: Run) -> None:
        """Scores a few rows of the cheapest plan, twice: the first time warms up, the second gives the speed."""
        from probes.beside import select_rows

        assert self._budget is not None
        plan = self.tiers["fast"].plan
        rows, _ = select_rows(plan.rows, list(range(min(run.job.world_size, len(plan.rows.rows)))))
        tokens = sum(len(row.tokens_S) for row in rows.rows)
        for attempt in range(2):
            start = time.perf_counter()
            _, cause = score_together(run, rows)
            seconds = time.perf_counter() - start
            if cause:
                return
            if attempt:
                self._budget.record(tokens, seconds)
            else:
                self._budget.spent_seconds += seconds

    def _open_store(self, run: Run) -> None:
        self._store = ProbeStore(run.info.directory)
        self._store.truncate_after(run.info.resume_step)

    def _tier(self, run: Run, name: str) -> LiveTier:
        probe, fast = run.config.probe, name == "fast"
        settings: dict[str, Any] = {"max_length": self._max_length, "add_bos": run.config.tokenizer.add_bos}
        wanted = Wanted(
            suite=self.suite.fast() if fast else self.suite,
            tokenizer=self._tokenizer,
            settings=PlanSettings(**settings, tokens_per_row=probe.tokens_per_row),
            task_paths=probe.task_paths,
            data_dir=probe.data_dir,
            limit=probe.limit,
            allow_code_execution=probe.allow_code_execution,
        )
        if fast:
            return LiveTier(name, wanted, plan=probe.fast_plan, key="probe.fast_plan")
        return LiveTier(name, wanted, plan=probe.plan, key="probe.plan")
