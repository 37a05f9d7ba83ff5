"""Saving: stage a copy, write it behind training, publish it by one rename.

A folder named `step_XXXXXXXX` exists only when every rank's bytes are durable and its manifest is written; until
then it is called `.writing`. Ranks meet through the file system, not through collectives, so that a save in the
background never competes with training's communication. Reading is `reader.py`; what is kept is `retain.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint import parts
from pretrain.checkpoint.blocks import KINDS, Block, Chunk
from pretrain.checkpoint.manifest import CheckpointMeta, ChunkRecord, Manifest
from pretrain.checkpoint.reader import LATEST_NAME, damage_in, folder_name
from pretrain.checkpoint.reference import Reference
from pretrain.checkpoint.shards import names_in, shard_name, write_shard
from pretrain.checkpoint.staging import Staging
from pretrain.durable import rename, replace_file, sync
from pretrain.errors import CheckpointError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class _Save:
    """One save of this rank: where each staged chunk belongs, and what goes into the manifest."""

    step: int
    staged: tuple[tuple[Block, int, int], ...]  # block, flat start in it, elements
    num_elements: int
    meta: CheckpointMeta


class Publisher:
    """Writes checkpoints of one run; one object per rank, at most one save in flight.

    `save` and `wait` are called by every rank. They pass the same barriers whether or not something failed, and
    raise only after them: a caller may catch `CheckpointError`, report it, and train on without ranks falling out
    of step. After a failure older checkpoints are as they were.
    """

    def __init__(
        self,
        root: Path,
        *,
        rank: int,
        world_size: int,
        barrier: Callable[[], None],
        background: bool,
        kinds: Sequence[str] = KINDS,
        on_published: Callable[[Path], None] | None = None,
        timeout_seconds: float = 600.0,
    ) -> None:
        """Prepares a publisher; touches no file.

        Args:
            root: folder of the run's checkpoints, on a file system that all ranks share.
            rank: global rank of this process.
            world_size: processes that save together.
            barrier: returns when all of them called it; used on the calling thread only.
            background: write in a thread; only the staging copy holds the caller up.
            kinds: what chunks carry; `("param",)` stores weights alone.
            on_published: called on rank 0 with the final folder, on the thread that wrote (retention, export).
                What it raises is reported like a failed save, on rank 0 alone; the checkpoint stays.
            timeout_seconds: how long rank 0 waits for the others' shards.
        """
        self._root, self._rank, self._world_size, self._barrier = Path(root), rank, world_size, barrier
        self._background, self._kinds, self._on_published = background, tuple(kinds), on_published
        self._timeout_seconds = timeout_seconds
        self._staging = Staging(self._kinds)
        self._in_flight: int | None = None
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def reserve(self, chunks: Iterable[Chunk]) -> None:
        """Makes room to copy such a state into, so that the first save need not; optional.

        Args:
            chunks: as `save` will be given them.
        """
        self._staging.reserve([chunk for chunk in chunks if chunk.numel])

    def save(
        self,
        step: int,
        chunks: Iterable[Chunk],
        meta: CheckpointMeta,
        *,
        reference: Callable[[], Reference] | None = None,
    ) -> Path:
        """Saves one checkpoint; returns once the state is copied (background) or published (foreground).

        A valid checkpoint of this step and this run that is already there is kept and nothing is written. An
        invalid one, or one of another run, is moved aside.

        Args:
            step: optimizer steps done.
            chunks: this rank's part of the state; over all ranks every element exactly once.
            meta: what the manifest records; rank 0's is used.
            reference: asks the live model for `meta.reference`, which a GPU does while its state is copied; called on
                every rank, or on none when nothing is written. It changes no state.

        Returns:
            The folder that is, or will be, the checkpoint.

        Raises:
            CheckpointError: the save before this one failed, and `wait` had not reported it; or, in the
                foreground, this one did.
        """
        self.wait()
        final = self._root / folder_name(step)
        refused = self._prepare(final, meta) if self._rank == 0 else None
        self._barrier()
        if final.name in names_in(self._root):
            if refused is not None:
                raise refused
            return final
        self._in_flight, self._error = step, refused
        save = self._stage(step, chunks, meta, reference)
        if save is None:
            return final if self._background else self._finish()
        if self._background:
            name = f"checkpoint-{step}"
            self._thread = threading.Thread(target=self._run, args=(save, final), name=name, daemon=True)
            self._thread.start()
            return final
        self._run(save, final)
        return self._finish()

    def wait(self) -> Path | None:
        """Waits for the save in flight. Every rank calls it; does nothing where none is in flight.

        Returns:
            The published folder, or None if nothing was in flight.

        Raises:
            CheckpointError: it was not published; the message says which rank failed and why.
        """
        return None if self._in_flight is None else self._finish()

    def _finish(self) -> Path:
        assert self._in_flight is not None
        if self._thread is not None:
            self._thread.join()
        self._barrier()  # all writers have ended: what is on disk is the outcome
        final = self._root / folder_name(self._in_flight)
        published = final.name in names_in(self._root)
        failures = {} if published else parts.failures(_writing(final))
        self._barrier()  # all have looked
        if self._rank == 0 and not published:
            shutil.rmtree(_writing(final), ignore_errors=True)
        error, self._error, self._thread, self._in_flight = self._error, None, None, None
        if error is not None:
            raise error
        if not published:
            reasons = "; ".join(f"rank {rank}: {text}" for rank, text in failures.items()) or "another rank failed"
            raise CheckpointError(f"{final} was not published: {reasons}. Older checkpoints are intact.")
        return final

    def _prepare(self, final: Path, meta: CheckpointMeta) -> CheckpointError | None:
        """Rank 0, before a save: clears what died saves left, and looks at a folder that has the step's name."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            names = names_in(self._root)
            for name in names:
                if name.startswith("step_") and name.endswith(".writing"):
                    # A part file left by a save that died would be taken for one of this save.
                    shutil.rmtree(self._root / name)
            if final.name in names:
                _keep_or_move_aside(final, meta, names)
            if final.name not in names_in(self._root):
                _writing(final).mkdir()
        except OSError as error:
            return _explained(error, final, 0)
        return None

    def _stage(
        self, step: int, chunks: Iterable[Chunk], meta: CheckpointMeta, reference: Callable[[], Reference] | None
    ) -> _Save | None:
        """Copies the state: the only wait a background save costs. None on a rank that cannot save.

        Such a rank asks the model all the same, which every rank does together.
        """
        final, listed = self._root / folder_name(step), []
        with contextlib.ExitStack() as stack:
            try:
                listed = [chunk for chunk in chunks if chunk.numel]
                stack.enter_context(self._staging.filled(listed))
            except Exception as error:  # noqa: BLE001 - no memory above all; reported by wait, as what fails in writing
                self._error = self._error or _explained(error, final, 0)
            if reference is not None:
                meta = dataclasses.replace(meta, reference=reference())
        if self._error is not None:
            parts.report_failure(_writing(final), self._rank, self._kinds, str(self._error))
            return None
        total = sum(chunk.numel for chunk in listed)
        return _Save(step, tuple((chunk.block, chunk.start, chunk.numel) for chunk in listed), total, meta)

    def _run(self, save: _Save, final: Path) -> None:
        """Writes this rank's shards and, on rank 0, publishes; what goes wrong is kept for `wait`."""
        try:
            self._write(save, _writing(final))
            if self._rank == 0:
                self._publish(save, final)
        except Exception as error:  # noqa: BLE001 - reported by wait, which raises it on the caller's thread
            needed = save.num_elements * 4 * len(self._kinds)
            self._error = _explained(error, final, needed)
            parts.report_failure(_writing(final), self._rank, self._kinds, str(self._error))

    def _write(self, save: _Save, folder: Path) -> None:
        names = [f"{b.key}@{','.join(map(str, b.offset))}+{start}" for b, start, _ in save.staged]
        sizes = [numel for _, _, numel in save.staged]
        written = []
        for row, kind in enumerate(self._kinds):
            data = self._staging.row(row, save.num_elements)
            written.append(write_shard(folder / shard_name(kind, self._rank), names, sizes, data))
        for kind in self._kinds:  # after all writes: the disk works while the next kind is hashed
            sync(folder / shard_name(kind, self._rank))
        digests_of_chunks = zip(*(shard.digests for shard in written), strict=True)
        records, at = [], 0
        for (block, start, numel), digests in zip(save.staged, digests_of_chunks, strict=True):
            place = (block.key, block.offset, block.shape, start, numel, self._rank, at)
            records.append(ChunkRecord(*place, digests))
            at += numel
        shapes = {block.key: block.global_shape for block, _, _ in save.staged}
        parts.write(folder, parts.Part.of(self._rank, save.num_elements, written, shapes, records))

    def _publish(self, save: _Save, final: Path) -> None:
        folder = _writing(final)
        received = parts.wait_for_all(folder, self._world_size, len(self._kinds), self._timeout_seconds)
        manifest = Manifest(
            step=save.step,
            kinds=self._kinds,
            meta=save.meta,
            tensors=parts.merged_shapes(received),
            files=tuple(part.file for part in received),
            chunks=tuple(chunk for part in received for chunk in part.chunks),
        )
        try:
            manifest.check()
        except ValueError as error:
            raise CheckpointError(
                f"{final}: the ranks' pieces are not the model: {error}. This is a fault of the engine's state map."
            ) from error
        parts.remove_all(folder)
        manifest.write(folder)
        rename(folder, final)
        with contextlib.suppress(OSError):  # advisory: nothing of ours reads it
            replace_file(self._root / LATEST_NAME, final.name + "\n")
        if self._on_published is not None:
            self._on_published(final)


def _writing(final: Path) -> Path:
    return final.with_name(final.name + ".writing")


def _keep_or_move_aside(final: Path, meta: CheckpointMeta, names: set[str]) -> None:
    """Leaves a sound checkpoint of this run where it is; anything else gets a name no reader looks at."""
    try:
        same_run = Manifest.read(final).meta.identity_hash == meta.identity_hash
        label = "replaced"
        if same_run:
            if damage_in(final) is None:
                return
            label = "damaged"
    except CheckpointError:
        label = "damaged"
    number = 1
    while f"{final.name}.{label}-{number}" in names:
        number += 1
    rename(final, final.with_name(f"{final.name}.{label}-{number}"))


def _explained(error: Exception, final: Path, needed_bytes: int) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    intact = "Older checkpoints are intact."
    explained = CheckpointError(f"{final} was not published: {type(error).__name__}: {error}. {intact}")
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(final.parent).free
            explained = CheckpointError(
                f"{final} was not published: {error.strerror}; this rank writes {needed_bytes:_} bytes, {free:_} are "
                f"free. Free space or quota, lower checkpoint.keep, or save less often (checkpoint.every). {intact}"
            )
    explained.__cause__ = error
    return explained
