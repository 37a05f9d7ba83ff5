"""What a run writes: checkpoints by its calendar, reduced or kept, and exports. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.checkpoint.calendar import save_steps
from pretrain.config.run import RunConfig

_FP32 = 4
_STATE = 3 * _FP32  # of an element: weight and two moments


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What a run writes.

    Attributes:
        saves: of the calendar.
        checkpoint_bytes: one that a run can resume from: fp32 weights and two moments, 12 bytes a parameter.
        weights_only_bytes: one that `checkpoint.keep` has reduced: 4 bytes a parameter.
        exports: Hugging Face folders.
        export_bytes: one of them: fp32, without the rows that fill the vocabulary up.
        total_bytes: checkpoints and exports at the end of the run.
    """

    saves: int
    checkpoint_bytes: int
    weights_only_bytes: int
    exports: int
    export_bytes: int
    total_bytes: int


def disk_plan(config: RunConfig, *, stored: int, exported: int) -> DiskPlan:
    """What the calendar, retention and exports of a run put on disk.

    Args:
        config: the resolved configuration.
        stored: elements of a checkpoint's weights.
        exported: elements of an export's.
    """
    calendar = save_steps(config)
    saves, keep = len(calendar.steps()), config.checkpoint.keep
    resumable = saves if keep is None else min(saves, keep)
    exports = {"all": saves, "last": 1}.get(config.checkpoint.export, 0)
    checkpoints = resumable * _STATE * stored + (saves - resumable) * _FP32 * stored
    return DiskPlan(
        saves=saves,
        checkpoint_bytes=_STATE * stored,
        weights_only_bytes=_FP32 * stored,
        exports=exports,
        export_bytes=_FP32 * exported,
        total_bytes=checkpoints + exports * _FP32 * exported,
    )
