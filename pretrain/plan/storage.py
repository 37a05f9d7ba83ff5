"""What a run writes, and how long that takes: checkpoints by its calendar, reduced or kept, and exports.

Arithmetic only. Saves at the ends of chunks (data.order=chunked) depend on the data, which a plan does not open.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.checkpoint.calendar import save_steps
from pretrain.config.run import RunConfig

_FP32 = 4
_STATE = 3 * _FP32  # of an element: weight and two moments
_EXPORT = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoragePlan:
    """What a run writes.

    Attributes:
        saves: of the calendar.
        resumable: those that keep optimizer state to the end: milestones, saves before a decay, and the newest.
        checkpoint_bytes: one that a run can resume from: fp32 weights and two moments, 12 bytes a parameter.
        weights_only_bytes: one that `checkpoint.keep` has reduced: 4 bytes a parameter.
        exports: Hugging Face folders.
        export_dtype: of their weights.
        export_bytes: one of them, without the rows that fill the vocabulary up.
        total_bytes: checkpoints and exports at the end of the run.
        stall_seconds: training waits for at a save: the copy of a rank's share to its host, or with
            checkpoint.background=false the writing too. None where the cluster has no such bandwidth.
        write_seconds: until a save is on shared storage.
        chunk_ends_left_out: there are further saves, where chunks of the data end.
    """

    saves: int
    resumable: int
    checkpoint_bytes: int
    weights_only_bytes: int
    exports: int
    export_dtype: str
    export_bytes: int
    total_bytes: int
    stall_seconds: float | None
    write_seconds: float | None
    chunk_ends_left_out: bool


def storage_plan(config: RunConfig, *, stored: int, exported: int, devices: int) -> StoragePlan:
    """What the calendar, retention and exports of a run put on disk.

    Args:
        config: the resolved configuration.
        stored: elements of a checkpoint's weights.
        exported: elements of an export's.
        devices: ranks that share a save out.
    """
    calendar, checkpoint, cluster = save_steps(config), config.checkpoint, config.cluster
    steps = calendar.steps()
    newest = steps if checkpoint.keep is None else steps[-checkpoint.keep :]
    resumable = len({step for step in steps if calendar.keeps_state(step)}.union(newest))
    exports = {"all": len(steps), "last": 1}.get(checkpoint.export, 0)
    export_bytes = _EXPORT[checkpoint.export_dtype] * exported
    checkpoints = resumable * _STATE * stored + (len(steps) - resumable) * _FP32 * stored
    host, storage = cluster.host_gigabytes_per_second, cluster.storage_gigabytes_per_second
    write = _STATE * stored / (storage * 1e9) if storage else None
    stall = _STATE * stored / devices / (host * 1e9) if host else None
    if stall is not None and not checkpoint.background:
        stall = stall + write if write is not None else None
    return StoragePlan(
        saves=len(steps),
        resumable=resumable,
        checkpoint_bytes=_STATE * stored,
        weights_only_bytes=_FP32 * stored,
        exports=exports,
        export_dtype=checkpoint.export_dtype,
        export_bytes=export_bytes,
        total_bytes=checkpoints + exports * export_bytes,
        stall_seconds=stall,
        write_seconds=write,
        chunk_ends_left_out=config.data.order == "chunked" and checkpoint.chunk_ends and checkpoint.every is None,
    )
