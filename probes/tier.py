"""One plan put to the live model: compiled or found on rank 0, held by every rank, scored, measured and recorded.

All ranks score; rank 0 alone knows lm-eval, measures and records. What goes wrong before the first step stops the
run on every rank; a measurement that fails later is an event, and training goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pretrain.engine.agree import failing_together
from pretrain.engine.base import PackedRows, TokenLogProbs
from pretrain.errors import EngineError, ProbeError
from pretrain.track.names import probe_name
from probes.compile import Wanted, plan_for
from probes.generate import Generated, generate_texts
from probes.harness import Harness
from probes.metrics import RECORD_ONLY
from probes.plan import Plan
from probes.record import METRIC_MISSING, Measurement, MissingMeasurement
from probes.remarks import PROBE_ITEMS, item_fields, warning
from probes.request import TaskFacts
from probes.score import CheckpointFacts, gather_answers, measure
from probes.store import ProbeStore
from probes.suite import is_fast, names_with_shots

if TYPE_CHECKING:
    from pretrain.hooks.base import Run

PLANS_FOLDER = "plans"
PROBE_FAILED = "probe_failed"
"""Kind of the event for what is missing at a save; its `part` says what failed."""
GENERATING = "generating"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Took:
    """Wall time on this rank in seconds; `scoring` is everything but the generating."""

    scoring: float
    generating: float


class LiveTier:
    """A suite, ready to be put to the live model at saves.

    Args:
        name: `full` or `fast`.
        wanted: what to compile.
        plan: folder of a plan compiled before; None compiles.
        key: the configuration key that names that folder.
    """

    def __init__(self, name: str, wanted: Wanted, *, plan: str | None, key: str) -> None:
        self.name = name
        self.plan: Plan
        self._wanted, self._compiled, self._key = wanted, plan, key
        self._harness: Harness | None = None
        self._scored_steps: set[int] = set()
        self._written_steps: set[int] = set()
        self._said_missing: set[tuple[str, str, int, str]] = set()

    def prepare(self, run: Run, store: ProbeStore | None) -> None:
        """Compiles the plan on rank 0, or takes the compiled one; every rank then holds it.

        Args:
            run: the run.
            store: its record, on rank 0.

        Raises:
            ProbeError: on every rank, for a suite or task that cannot be scored, or a plan that does not fit the run.
        """
        start = time.perf_counter()
        plan_hash, scored_steps, written_steps = run.job.once(lambda: self._find(run, store))
        self._scored_steps, self._written_steps = set(scored_steps), set(written_steps)
        self._load(run, plan_hash)
        if run.job.rank == 0:
            step, seconds = run.state.step, time.perf_counter() - start
            run.tracker.event("probe_plan", step=step, seconds=seconds, **self.plan.describe())
            if said := warning(self.plan):
                run.tracker.warn(PROBE_ITEMS, said, step=step, **item_fields(self.plan))

    def is_complete(self, step: int, *, written: bool = False) -> bool:
        """Whether this step has been measured, and where it is asked for the answers that the model writes, too."""
        return step in (self._written_steps if written else self._scored_steps)

    def probe(self, run: Run, store: ProbeStore | None, *, flops_per_token: float, generate: bool = False) -> Took:
        """Scores the live model and records it; every rank calls it.

        Args:
            run: the run.
            store: its record, on rank 0.
            flops_per_token: training FLOPs of one token.
            generate: also have the model write the answers of tasks for which the suite wants that.
        """
        start = time.perf_counter()
        scored = self._score(run)
        seconds = time.perf_counter() - start
        generating = 0.0
        if scored is not None:
            generated = self._generate(run) if generate else None
            generating = time.perf_counter() - start - seconds
            self._scored_steps.add(run.state.step)
            if generated is not None or not self._writes:
                self._written_steps.add(run.state.step)
            if store is not None:
                self._measure(run, (scored, generated), store, seconds, flops_per_token)
        return Took(time.perf_counter() - start - generating, generating)

    def _find(self, run: Run, store: ProbeStore | None) -> tuple[str, list[int], list[int]]:
        """Rank 0's part of the start: the plan's hash, and the steps measured under it, without and with texts."""
        assert store is not None, "rank 0 keeps the record"
        plans = run.info.directory / PLANS_FOLDER
        self.plan, self._harness = plan_for(self._wanted, compiled=self._compiled, key=self._key, plans=plans)
        scored, written = (sorted(store.complete_steps(self.plan, written=also)) for also in (False, True))
        return self.plan.plan_hash, scored, written

    def _load(self, run: Run, plan_hash: str) -> None:
        """Reads rank 0's plan on every other rank; one that cannot stops all of them."""

        def load() -> None:
            if self._harness is None:
                self.plan = Plan.load(_plan_folder(run, plan_hash))

        try:
            run.job.everywhere(load, what="Reading the plan")
        except EngineError as error:
            raise ProbeError(str(error)) from error

    def _score(self, run: Run) -> TokenLogProbs | None:
        """The answers; None on every rank if one rank failed, which is an event."""
        scored, cause = score_together(run, self.plan.rows)
        if cause:
            self._failed(run, "scoring", cause)
        return scored

    def _generate(self, run: Run) -> Generated | None:
        """What the model writes; None if the suite wants nothing, or on every rank if one failed, which is an event."""
        if not self._writes:
            return None
        generated, cause = _together(run, lambda: generate_texts(self.plan.stored, self._wanted.tokenizer, run.engine))
        if cause:
            self._failed(run, GENERATING, cause)
        return generated

    @property
    def _writes(self) -> bool:
        """Whether the suite wants answers that the model writes."""
        return any(task.prompts for task in self.plan.stored.tasks)

    def _failed(self, run: Run, part: str, cause: str) -> None:
        """A warning on rank 0, with the command that makes up for what is missing."""
        if run.job.rank != 0:
            return
        step, suite = run.state.step, self.plan.suite
        remedy = (
            "The next save is scored as ever."
            if is_fast(suite)
            else f"Make up for it from the checkpoint: python -m probes watch {run.info.directory} until=now"
        )
        run.tracker.warn(
            PROBE_FAILED,
            f"Suite {suite}, step {step}: {part} failed ({cause}). Training goes on. {remedy}",
            step=step,
            suite=suite,
            part=part,
            cause=cause,
        )

    def _measure(
        self,
        run: Run,
        found: tuple[TokenLogProbs, Generated | None],
        store: ProbeStore,
        seconds: float,
        flops_per_token: float,
    ) -> None:
        """Rank 0's half; it may fail without stopping training, as scoring may."""
        assert self._harness is not None, "compiled on rank 0"
        scored, generated = found
        state, start = run.state, time.perf_counter()
        facts = CheckpointFacts(
            run=run.info.name,
            step=state.step,
            tokens=state.tokens,
            flops=state.tokens * flops_per_token,
            config_hash=run.info.config_hash,
        )
        try:
            answers = gather_answers(self.plan, scored)
            texts = generated.texts if generated is not None else None
            missing: list[MissingMeasurement] = []
            measurements = measure(
                self.plan, answers, self._harness, facts, seconds=seconds, texts=texts, missing=missing
            )
            store.write_items(self.plan, answers, step=state.step)
            store.append(measurements, missing)
        except Exception as error:  # noqa: BLE001 (task files hold other people's code; the cause is recorded)
            self._failed(run, "measuring", f"{type(error).__name__}: {error}")
            return
        self._say_missing(run, missing)
        run.tracker.log_views(dashboard_values(measurements, self.plan.tasks), step=state.step, tokens=state.tokens)
        written: dict[str, Any] = {}
        took = seconds + time.perf_counter() - start
        if generated is not None:
            took += generated.seconds
            written = {"generated_tokens": generated.num_tokens, "generate_seconds": generated.seconds}
        run.tracker.event(
            "probe",
            step=state.step,
            suite=self.plan.suite,
            seconds=took,
            score_seconds=seconds,
            tokens=self.plan.num_tokens,
            num_measurements=len(measurements),
            **written,
        )

    def _say_missing(self, run: Run, missing: Sequence[MissingMeasurement]) -> None:
        """An event for each metric that could not be computed; a warning when it is missing for the first time."""
        for one in missing:
            fields = one.to_json()
            step = fields.pop("step")
            place = (one.domain, one.task, one.num_fewshot, one.metric)
            if place in self._said_missing:
                run.tracker.event(METRIC_MISSING, step=step, **fields)
            else:
                self._said_missing.add(place)
                run.tracker.warn(METRIC_MISSING, one.sentence(), step=step, **fields)


def score_together(run: Run, rows: PackedRows) -> tuple[TokenLogProbs | None, str]:
    """Answers and no cause, or no answers and the cause on every rank if one rank failed.

    The engine keeps ranks in step; a cause that is another rank's is named by it on its own output.
    """
    return _together(run, lambda: run.engine.score(rows))


def _together(run: Run, work: Callable[[], T]) -> tuple[T | None, str]:
    done: T | None = None
    cause, is_own = "", False
    try:
        with failing_together():
            done = work()
    except Exception as error:  # noqa: BLE001 (out of memory above all; training must go on, the cause is recorded)
        is_own = not isinstance(error, EngineError)  # which every rank has, and names the rank
        cause = f"{type(error).__name__}: {error}" if is_own else str(error)
    failed = run.job.maximum(run.job.rank + 1 if cause else 0)
    if not failed:
        return done, ""
    if is_own and run.job.rank:
        print(f"rank {run.job.rank} could not score step {run.state.step}: {cause}", file=sys.stderr, flush=True)
    return None, cause or f"rank {failed - 1} failed; its output says why"


def dashboard_values(
    measurements: Sequence[Measurement], beside: Sequence[Measurement | TaskFacts] = ()
) -> dict[str, float]:
    """What views show: all metrics but those of `probes.metrics.RECORD_ONLY`, by their stable names.

    Those of a fast tier are charts of their own: `probe-fast-<domain>/…`. So is a task at each of several numbers of
    examples: `…/<task>@5shot/…`.

    Args:
        measurements: of one checkpoint.
        beside: what else the compiled suite has, or has given at other checkpoints: a name must not depend on what is
            missing at this one.
    """
    others = ((one.name if isinstance(one, TaskFacts) else one.task, one.num_fewshot) for one in beside)
    shown = names_with_shots([*((row.task, row.num_fewshot) for row in measurements), *others])
    values = {}
    for row in measurements:
        if row.metric not in RECORD_ONLY:
            domain = f"fast-{row.domain}" if is_fast(row.suite) else row.domain
            values[probe_name(domain, shown[row.task, row.num_fewshot], row.metric)] = row.value
    return values


def _plan_folder(run: Run, plan_hash: str) -> Path:
    return run.info.directory / PLANS_FOLDER / plan_hash
