"""What is kept: old checkpoints lose the optimizer's moments and keep their weights.

Weights are what probes and exports need, and a third of the bytes. The manifest is rewritten before files go, so
that a crash at any point leaves checkpoints that are valid; leftovers go at the next call.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pretrain.checkpoint.blocks import KINDS, WEIGHTS_ONLY
from pretrain.checkpoint.reader import list_checkpoints
from pretrain.checkpoint.shards import names_in
from pretrain.durable import sync
from pretrain.errors import ConfigError

_MOMENTS = tuple(kind for kind in KINDS if kind not in WEIGHTS_ONLY)


def retain(root: Path, *, keep: int | None, always: Callable[[int], bool] = lambda step: False) -> list[Path]:
    """Drops the moments of all but the newest `keep` resumable checkpoints. Call it on one rank.

    Folders that are no usable checkpoint are neither counted nor touched.

    Args:
        root: folder of the run's checkpoints.
        keep: checkpoints that stay resumable, at least 1; None keeps all.
        always: whether a step's stays resumable beside them (`Calendar.keeps_state`).

    Returns:
        The checkpoints that were reduced by this call, oldest first.

    Raises:
        ConfigError: `keep` is below 1.
        OSError: the file system refused; every checkpoint is still valid.
    """
    if keep is None:
        return []
    if keep < 1:
        raise ConfigError(f"checkpoint.keep={keep} would leave nothing to resume from. Use 1 or more, or null.")
    usable = [(info.path, info.manifest) for info in list_checkpoints(root) if info.manifest is not None]
    resumable = [(path, manifest) for path, manifest in usable if manifest.is_resumable]
    reduced = []
    for path, manifest in resumable[:-keep]:
        if always(manifest.step):
            continue
        manifest.with_kinds(WEIGHTS_ONLY).write(path)
        reduced.append(path)
    for path in [path for path, manifest in usable if not manifest.is_resumable] + reduced:
        _remove_moments(path)
    return reduced


def _remove_moments(path: Path) -> None:
    leftovers = [name for name in names_in(path) if name.startswith(_MOMENTS) and name.endswith(".safetensors")]
    for name in leftovers:
        (path / name).unlink()
    if leftovers:
        sync(path)
