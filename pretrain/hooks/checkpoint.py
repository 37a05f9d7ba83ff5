"""Saving: publishes the state of the present step, and reports a save that failed without ending the run.

With the state goes what the live model says to a few fixed prompts, which every later export is held against.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from pretrain.checkpoint.manifest import CheckpointMeta
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reference import Reference, take_reference
from pretrain.errors import CheckpointError
from pretrain.hooks.base import Run, StepReport


class CheckpointHook:
    """Publishes at every save; training waits for the copy only when `checkpoint.background` is set.

    Args:
        publisher: writes this rank's part.
        meta: what every manifest of this run says; position, optimizer step and reference are filled in at each save.
    """

    def __init__(self, publisher: Publisher, meta: CheckpointMeta) -> None:
        self._publisher, self._meta = publisher, meta
        self._failed: CheckpointError | None = None

    def on_start(self, run: Run) -> None:
        """Makes room for the copy, so that the first save need not."""
        self._publisher.reserve(run.engine.sharded_state().chunks())

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing to do."""

    def on_save(self, run: Run) -> None:
        """Commits the record, then saves; the step a run resumed from is there already."""
        if run.state.step == run.info.resume_step:
            return
        started = time.perf_counter()
        self._attempt(run, self._publisher.wait)
        # Rows up to this step must be on disk before a checkpoint exists that a resume would start from.
        run.tracker.commit(durable=True)
        state = run.engine.sharded_state()
        precision, fp32 = run.config.precision, run.config.precision.compute == "fp32"
        meta = dataclasses.replace(
            self._meta, run_state=run.state.state_dict(), optimizer_step=run.job.maximum(state.optimizer_step())
        )

        def reference() -> Reference:
            return take_reference(
                run.engine,
                vocab_size=self._meta.model.vocab_size,
                compute="tf32" if fp32 and precision.tf32 else precision.compute,
            )

        self._attempt(run, lambda: self._publisher.save(run.state.step, state.chunks(), meta, reference=reference))
        seconds = time.perf_counter() - started
        run.tracker.event("save", step=run.state.step, checkpoint=run.checkpoint.name, seconds=seconds)

    def on_end(self, run: Run) -> None:
        """Waits until the last checkpoint is published.

        Raises:
            CheckpointError: the last save failed; earlier failures have been reported as events.
        """
        self._failed = None
        self._attempt(run, self._publisher.wait)
        if self._failed is not None:
            raise self._failed

    def _attempt(self, run: Run, save: Callable[[], object]) -> None:
        """A failed save is an event: the disk may have room again at the next one. Every rank agrees on it."""
        try:
            save()
        except CheckpointError as error:
            self._failed = error
            run.tracker.event("save_failed", step=run.state.step, cause=str(error))
