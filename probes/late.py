"""Shows scores made beside training in the run's views: while it trains, and what is left when it has ended.

Nothing is scored here. Training looks at the size of one small file now and then; whoever shows writes down what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.run import RunConfig
from pretrain.errors import ProbeError
from pretrain.locks import Held
from pretrain.track.sink import RunInfo
from pretrain.track.tracker import reopen_views
from probes.journal import Journal, Place
from probes.record import Measurement
from probes.store import ProbeStore
from probes.tier import dashboard_values

if TYPE_CHECKING:
    from pretrain.hooks.base import Run, StepReport

TRAINING_LOCK = ".training.lock"
"""Held by the process that has the run's views open."""

EVERY_STEPS = 10
"""How often training looks for new scores."""

Show = Callable[[Mapping[str, float], int, int], None]
"""Given values, step and tokens."""


class LateScoresHook:
    """Implements `pretrain.hooks.base.Hook`.

    Args:
        every_steps: how often to look whether there are new scores.
    """

    def __init__(self, *, every_steps: int = EVERY_STEPS) -> None:
        self._every_steps = every_steps
        self._lock: Held | None = None
        self._size = -1

    def on_start(self, run: Run) -> None:
        """Tells watchers that training has the views; forgets scores of steps that will be done again."""
        if run.job.rank != 0:
            return
        self._lock = Held(run.info.directory / TRAINING_LOCK)
        self._attempt(run, lambda: self._take(run))
        self._attempt(run, lambda: ProbeStore(run.info.directory).truncate_after(run.info.resume_step))

    def on_step(self, run: Run, report: StepReport) -> None:
        """Shows what has come, every so many steps."""
        if run.job.rank == 0 and report.state.step % self._every_steps == 0:
            self._attempt(run, lambda: self._show(run))

    def on_save(self, run: Run) -> None:
        """Nothing: saves are what the watcher waits for."""

    def on_end(self, run: Run) -> None:
        """Shows what has come; the lock stays until this process ends, when its views are closed."""
        if run.job.rank == 0:
            self._attempt(run, lambda: self._show(run))

    def _take(self, run: Run) -> None:
        assert self._lock is not None, "made before"
        if not self._lock.take():
            run.tracker.event("training_lock_taken", step=run.state.step, holder=self._lock.holder())

    def _show(self, run: Run) -> None:
        journal = Journal(run.info.directory)
        size = journal.path.stat().st_size if journal.path.exists() else 0
        if size == self._size:
            return
        self._size = size
        show_unshown(
            journal,
            ProbeStore(run.info.directory),
            lambda values, step, tokens: run.tracker.log_views(values, step=step, tokens=tokens),
        )

    def _attempt(self, run: Run, work: Callable[[], object]) -> None:
        """What fails here is an event: training needs no scores."""
        try:
            work()
        except (ProbeError, OSError) as error:
            run.tracker.event("probe_failed", step=run.state.step, cause=str(error))


def show_unshown(journal: Journal, store: ProbeStore, show: Show) -> list[Place]:
    """Gives views the scores they have not had, oldest checkpoint first, and writes down which.

    Args:
        journal: of the run.
        store: of the run.
        show: what gives values to views.

    Returns:
        What was shown.

    Raises:
        ProbeError: the run's files cannot be read or written.
    """
    rows: dict[Place, list[Measurement]] = {}
    of_plan: dict[str, list[Measurement]] = {}
    for row in store.measurements:
        rows.setdefault((row.step, row.plan_hash), []).append(row)
        of_plan.setdefault(row.plan_hash, []).append(row)
    shown = []
    for place in sorted(journal.unshown()):
        measurements = rows.get(place)
        if measurements:  # or its rows are being written
            values = dashboard_values(measurements, of_plan[measurements[0].plan_hash])
            show(values, measurements[0].step, measurements[0].tokens)
            shown.append(place)
    journal.mark_shown(shown)
    return shown


def show_rest(
    directory: Path, config: RunConfig, info: RunInfo, *, wait_seconds: float, say: Callable[[str], None]
) -> list[Place]:
    """After training: gives W&B and TensorBoard what training has not, as another part of the same run.

    Args:
        directory: the run directory.
        config: the run's.
        info: what views want to know of the run.
        wait_seconds: how long training may still hold its views.
        say: told what could not be shown.

    Returns:
        What was shown.

    Raises:
        ProbeError: the run's files cannot be read or written.
    """
    journal, store = Journal(directory), ProbeStore(directory)
    if not journal.unshown():
        return []
    lock, deadline = Held(directory / TRAINING_LOCK), time.monotonic() + wait_seconds
    try:
        while not lock.take():
            if time.monotonic() > deadline:
                say(f"Scores were not shown in W&B and TensorBoard: {lock.holder()} still has them open.")
                return []
            time.sleep(0.2)
    except OSError as error:
        raise ProbeError(f"{directory} cannot be locked: {error}. Check the disk's permissions.") from error
    views = reopen_views(config.track, info)
    try:
        return show_unshown(
            journal, store, lambda values, step, tokens: views.log_views(values, step=step, tokens=tokens)
        )
    finally:
        views.close()
        lock.release()


def domains_of(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Domains in the order of their first measurement."""
    return tuple(dict.fromkeys(row.domain for row in measurements))
