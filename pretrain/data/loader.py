"""From sample order to the batches of one data-parallel rank, at any position, with read-ahead.

Holds no position: a batch is found by the index of its first sample, so resuming is asking for another index.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType

import numpy as np

from pretrain.batch_size import BatchSizes
from pretrain.data.order import SampleLocations, SampleOrder
from pretrain.data.tokens import TokenStream
from pretrain.engine.base import Batch
from pretrain.errors import ConfigError

_BATCHES_AHEAD = 2
_LOCATED_AT_ONCE = 1024
"""Samples whose places are looked up together: for few at a time numpy's calls would cost more than its work."""


class BatchLoader:
    """Reads the share of one data-parallel rank of any global batch.

    Microbatch m of rank r holds samples first + m·(micro·dp) + r·micro + b for slot b, so that all ranks together
    read each sample of the global batch once, in whatever layout.
    """

    def __init__(
        self,
        order: SampleOrder,
        streams: Mapping[str, TokenStream],
        *,
        batch_sizes: BatchSizes,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        """Reads nothing yet.

        Args:
            order: which window is sample i; decides the sequence length.
            streams: training tokens per source.
            batch_sizes: sequences per optimizer step over all ranks, over the run.
            micro_batch_size: sequences per rank and microbatch.
            dp_rank: this data-parallel rank.
            dp_size: number of data-parallel ranks.

        Raises:
            ConfigError: a global batch is not a whole number of microbatches on every rank.
        """
        at_once = micro_batch_size * dp_size
        sizes = {stage.global_batch_size for stage in batch_sizes.stages}
        misfits = [size for size in sorted(sizes) if size % at_once or size <= 0]
        if misfits:
            raise ConfigError(
                [
                    f"train.global_batch_size={size} must be a positive multiple of train.micro_batch_size · "
                    f"data-parallel ranks = {micro_batch_size} · {dp_size} = {at_once}."
                    for size in misfits
                ]
            )
        self._order = order
        self._streams = [streams[name] for name in order.sources]
        self._batch_sizes = batch_sizes
        self._located: tuple[int, SampleLocations] | None = None  # first sample, places from there on
        # Of each batch size, the places in the global batch that are this rank's.
        self._slots_MB = {
            size: np.arange(size).reshape(size // at_once, dp_size, micro_batch_size)[:, dp_rank] for size in sizes
        }

    def batch(self, first_sample: int) -> Batch:
        """This rank's share of the global batch that starts at a sample index; a pure function of the index."""
        order, length = self._order, self._order.sequence_length
        num_samples = self._batch_sizes.at_sample(first_sample)
        found, slots_MB = self._locate(first_sample, num_samples), self._slots_MB[num_samples]
        tokens_MBT = np.empty((*slots_MB.shape, length + 1), dtype=np.int32)
        rows = tokens_MBT.reshape(-1, length + 1)
        for row, slot in zip(rows, slots_MB.flat, strict=True):
            row[:] = self._streams[found.source[slot]].window(int(found.start[slot]), length + 1)
        samples = np.bincount(found.source, minlength=len(order.sources))
        source_tokens = {name: int(n) * length for name, n in zip(order.sources, samples, strict=True)}
        return Batch(tokens_MBT, first_sample, num_samples, source_tokens)

    def _locate(self, first_sample: int, count: int) -> SampleLocations:
        start, known = self._located or (0, None)
        at = first_sample - start
        if known is None or not 0 <= at <= len(known.source) - count:
            start, at, known = first_sample, 0, self._order.locate(first_sample, max(count, _LOCATED_AT_ONCE))
            self._located = start, known
        part = slice(at, at + count)
        return SampleLocations(known.source[part], known.epoch[part], known.window[part], known.start[part])

    def iterate(self, first_sample: int) -> BatchIterator:
        """Endless batches from a sample index on, read ahead by one thread. Close it, or use it in `with`."""
        return BatchIterator(self, first_sample=first_sample)


class BatchIterator(Iterator[Batch]):
    """Batches in order, two of them read ahead. An error of the reading thread is raised by `next`."""

    def __init__(self, loader: BatchLoader, *, first_sample: int) -> None:
        self._loader = loader
        self._next_sample = first_sample
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(_BATCHES_AHEAD)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="batch-reader", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """The next batch; blocks until it is read.

        Raises:
            StopIteration: the iterator is closed.
        """
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item

    def close(self) -> None:
        """Stops the thread and waits for it. May be called again."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # a full queue would hold the thread
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        try:
            while not self._closed.is_set():
                batch = self._loader.batch(self._next_sample)
                self._next_sample += batch.num_samples
                self._queue.put(batch)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks for batches
            self._queue.put(error)
