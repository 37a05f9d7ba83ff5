"""What happens beside the training step: metrics, validation, saving, probing.

Hooks run on every rank, in the order of the list, between steps. A hook may read everything of the run and
must leave weights, moments, data position and random state untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pretrain.config.run import RunConfig
from pretrain.engine.base import Engine, StepResult
from pretrain.state import RunState
from pretrain.track.sink import RunInfo

if TYPE_CHECKING:
    from pretrain.track.tracker import Tracker


@dataclass(slots=True)
class Run:
    """The running run, handed to every hook.

    Attributes:
        config: the resolved configuration.
        state: position after the step just done.
        engine: the live engine.
        tracker: where rows and events go (does nothing on ranks other than 0).
        info: static facts of the run, its directory among them.
        rank: global rank of this process.
        world_size: number of processes.
    """

    config: RunConfig
    state: RunState
    engine: Engine
    tracker: Tracker
    info: RunInfo
    rank: int
    world_size: int


class Hook(Protocol):
    """Every method is called on every rank; a hook that has nothing to do at a point leaves it empty."""

    def on_start(self, run: Run) -> None:
        """Before the first step, after a resume has been loaded."""
        ...

    def on_step(self, run: Run, result: StepResult, seconds: float) -> None:
        """After each step; `seconds` is the wall time of the step alone."""
        ...

    def on_checkpoint(self, run: Run, checkpoint: Path) -> None:
        """After each save; the folder may still be being written behind training."""
        ...

    def on_end(self, run: Run) -> None:
        """After the last step, before sinks close."""
        ...
