"""What happens beside the training step: metrics, validation, saving, probing.

Hooks run on every rank, in the order of the list, between steps. A hook may read everything of the run and
must leave weights, moments, data position and random state untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pretrain.config.run import RunConfig
from pretrain.engine.base import Engine, StepResult
from pretrain.engine.job import Job
from pretrain.state import RunState
from pretrain.track.sink import RunInfo

if TYPE_CHECKING:
    from pretrain.checkpoint.calendar import Calendar
    from pretrain.track.tracker import Tracker


@dataclass(slots=True)
class Run:
    """The running run, handed to every hook.

    Attributes:
        config: the resolved configuration.
        state: position after the step that was given to the engine last; at a save and at the end that step is
            done and has been reported.
        engine: the live engine.
        tracker: where rows and events go (does nothing on ranks other than 0).
        info: static facts of the run, its directory among them.
        job: rank, world size, and what all processes do together.
        checkpoints: folder of the run's checkpoints.
        calendar: the steps at which everything is measured and saved.
        stopping: set by a hook on every rank to save and leave, after the step that the engine is at.
        is_observed: whether a step is measured layer by layer; set by a hook in `on_start`, the same on every rank.
    """

    config: RunConfig
    state: RunState
    engine: Engine
    tracker: Tracker
    info: RunInfo
    job: Job
    checkpoints: Path
    calendar: Calendar
    stopping: bool = False
    is_observed: Callable[[int], bool] = lambda step: False

    @property
    def checkpoint(self) -> Path:
        """Where a checkpoint of the present step lies, or would lie."""
        return self.checkpoints / f"step_{self.state.step:08d}"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step.

    Attributes:
        result: what the step did.
        state: position after this step. `run.state` may be a step ahead of it: where the engine need not be waited
            for, the next step is given to it before this one is reported.
        learning_rate: learning rate of the update.
        seconds: wall time of the step, waiting for data included: until it was known to be done, since the step before
            was, or since this one began where that is later.
        data_seconds: how long the host waited for this step's data.
    """

    result: StepResult
    state: RunState
    learning_rate: float
    seconds: float
    data_seconds: float = 0.0


class Hook(Protocol):
    """Every method is called on every rank, hooks in the order of the list.

    At a save the order carries meaning: what is measured before the checkpoint is written (validation) is in
    the record when the checkpoint exists; what comes after it (probing) is made up for when a run resumes.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step, after a resume has been loaded."""
        ...

    def on_step(self, run: Run, report: StepReport) -> None:
        """After each step, in their order; see `StepReport.state`."""
        ...

    def on_save(self, run: Run) -> None:
        """At each save, and again when a run resumes from one; must be idempotent.

        A save off the calendar (the run was told to stop) is for the checkpoint alone: nothing is measured.
        """
        ...

    def on_end(self, run: Run) -> None:
        """After the last step, before sinks close."""
        ...
