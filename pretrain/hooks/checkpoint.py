"""Saving: the published checkpoint of the present step, retention of older ones, and exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.checkpoint.publish import Publisher
from pretrain.hooks.base import Run, StepReport
from pretrain.track import names


class CheckpointHook:
    """Publishes at every save; training waits for the copy only when `checkpoint.background` is set.

    Args:
        publisher: writes this rank's part.
        manifest_fields: what every manifest of this run says besides position and tensors.
        after_publish: called on rank 0 with each published folder, in order (retention, export).
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        manifest_fields: dict[str, Any],
        after_publish: Callable[[Path], None],
    ) -> None:
        self._publisher, self._fields, self._after = publisher, manifest_fields, after_publish
        self._unfinished: list[Path] = []

    def on_start(self, run: Run) -> None:
        """Nothing to prepare."""

    def on_step(self, run: Run, report: StepReport) -> None:
        """Nothing to do."""

    def on_save(self, run: Run) -> None:
        """Commits the record, then saves; a step that is already published is left alone."""
        if run.state.step == run.info.resume_step:
            return
        started = time.perf_counter()
        self._finish(run)
        # Rows up to this step must be on disk before a checkpoint exists that a resume would start from.
        run.tracker.commit()
        state = run.engine.sharded_state()
        self._publisher.save(
            run.state.step,
            state.chunks(),
            optimizer_step=state.optimizer_step(),
            state=run.state.state_dict(),
            **self._fields,
        )
        self._unfinished.append(run.checkpoint)
        seconds = time.perf_counter() - started
        run.tracker.event(
            "save", {"checkpoint": run.checkpoint.name, names.TIME_SAVING_SECONDS: seconds}, step=run.state.step
        )

    def on_end(self, run: Run) -> None:
        """Waits until the last checkpoint is published."""
        self._finish(run)

    def _finish(self, run: Run) -> None:
        self._publisher.wait()
        run.job.barrier()
        finished, self._unfinished = self._unfinished, []
        if run.job.rank == 0:
            for path in finished:
                self._after(path)
