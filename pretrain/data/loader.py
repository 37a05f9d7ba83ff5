"""From sample order to the batches of one data-parallel rank, at any position, with read-ahead.

Holds no position: a batch is found by the index of its first sample, so resuming is asking for another index.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

import numpy as np

from pretrain.batch_size import BatchSizes
from pretrain.data.order import SampleLocations, SampleOrder
from pretrain.data.tokens import TokenStream, read_ends, read_windows
from pretrain.engine.base import Batch
from pretrain.errors import ConfigError, DataError

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
        vocab_size: int | None = None,
        document_mask: bool = False,
        left_out_id: int | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            order: which window is sample i; decides the sequence length.
            streams: training tokens per source.
            batch_sizes: sequences per optimizer step over all ranks, over the run.
            micro_batch_size: sequences per rank and microbatch.
            dp_rank: this data-parallel rank.
            dp_size: number of data-parallel ranks.
            vocab_size: ids from this on are an error; None checks none.
            document_mask: also say where documents end (`Batch.ends_MBS`).
            left_out_id: give targets the weights of `sequence_weights`, which leave this id out; None gives none.

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
        self._vocab_size, self._document_mask = vocab_size, document_mask
        self._left_out_id = left_out_id
        self._located: tuple[int, SampleLocations] | None = None  # first sample, places from there on
        # Of each batch size, the places in the global batch that are this rank's.
        self._slots_MB = {
            size: np.arange(size).reshape(size // at_once, dp_size, micro_batch_size)[:, dp_rank] for size in sizes
        }

    def batch(self, first_sample: int) -> Batch:
        """This rank's share of the global batch that starts at a sample index; a pure function of the index.

        Raises:
            DataError: a shard is missing, torn or changed, or holds an id outside the vocabulary.
        """
        order, length = self._order, self._order.sequence_length
        num_samples = self._batch_sizes.at_sample(first_sample)
        found, slots_MB = self._locate(first_sample, num_samples), self._slots_MB[num_samples]
        slots = slots_MB.reshape(-1)
        source, start = found.source[slots], found.start[slots]
        tokens_MBT = np.empty((*slots_MB.shape, length + 1), dtype=np.int32)
        rows = tokens_MBT.reshape(-1, length + 1)
        read_windows(self._streams, source, start, rows)
        # Read as unsigned, a negative id is a large one: one pass finds both.
        vocab_size = self._vocab_size
        if vocab_size is not None and rows.view(np.uint32).max() >= vocab_size:
            is_bad = (rows < 0) | (rows >= vocab_size)
            row, column = divmod(int(is_bad.argmax()), rows.shape[1])
            place = self._streams[source[row]].place(int(start[row]) + column)
            raise DataError(
                f"{place.path}, byte {place.offset}: token id {rows[row, column]} is outside the vocabulary of "
                f"{vocab_size} (0 to {vocab_size - 1}); it is token {column} of sample {first_sample + slots[row]}, "
                f"source {order.sources[source[row]]}; {int(is_bad.sum())} such ids in this rank's share of the batch. "
                "The file is damaged or was made with another tokenizer: compare tokenizer.path with the one it was "
                "prepared with, check the folder with `python -m pretrain.data check`, or prepare it anew."
            )
        ends_MBS = None
        if self._document_mask:
            ends_MBS = np.empty((*slots_MB.shape, length), dtype=np.int32)
            read_ends(self._streams, source, start, ends_MBS.reshape(-1, length))
        samples = np.bincount(found.source, minlength=len(order.sources))
        source_tokens = {name: int(n) * length for name, n in zip(order.sources, samples, strict=True)}
        weights_MBS = None if self._left_out_id is None else sequence_weights(tokens_MBT[..., 1:], self._left_out_id)
        return Batch(tokens_MBT, first_sample, num_samples, source_tokens, ends_MBS, weights_MBS)

    def _locate(self, first_sample: int, count: int) -> SampleLocations:
        first, known = self._located or (0, None)
        at = first_sample - first
        if known is None or not 0 <= at <= len(known.source) - count:
            first, at, known = first_sample, 0, self._order.locate(first_sample, max(count, _LOCATED_AT_ONCE))
            self._located = first, known
        part = slice(at, at + count)
        return SampleLocations(known.source[part], known.epoch[part], known.window[part], known.start[part])

    def iterate(self, first_sample: int, *, read_ahead: int = 2) -> BatchIterator:
        """Endless batches from a sample index on, read ahead by one thread. Close it, or use it in `with`.

        Args:
            first_sample: index of the first batch's first sample.
            read_ahead: batches read before they are asked for, at least 1.
        """
        return BatchIterator(self, first_sample=first_sample, read_ahead=read_ahead)


def sequence_weights(targets_S: np.ndarray, left_out_id: int) -> np.ndarray:
    """Weights that make a mean over targets the mean over sequences of each one's mean, without one id.

    EasyLM's loss (easylm/jax_utils.py, cross_entropy_loss_and_accuracy), with which OpenLLaMA was trained: its targets
    that begin a document are not trained on, and a sequence counts the same however many those are.

    Args:
        targets_S: int32 [..., S].
        left_out_id: weight 0, usually that of `<s>`.

    Returns:
        float32 [..., S]: S / n on a sequence's n other targets.
    """
    wanted_S = targets_S != left_out_id
    count = np.maximum(wanted_S.sum(-1, keepdims=True), 1)
    return (wanted_S * (targets_S.shape[-1] / count)).astype(np.float32)


class BatchIterator(Iterator[Batch]):
    """Batches in order, some of them read ahead. An error of the reading thread is raised by `next`.

    Args:
        loader: reads the batches.
        first_sample: index of the first batch's first sample.
        read_ahead: batches read before they are asked for, at least 1.

    Attributes:
        waited_seconds: how long `next` waited for the last batch; 0.0 before the first.
    """

    def __init__(self, loader: BatchLoader, *, first_sample: int, read_ahead: int = 2) -> None:
        self.waited_seconds = 0.0
        self._loader = loader
        self._next_sample = first_sample
        # The reading thread holds a batch of its own while the queue is full.
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(max(1, read_ahead - 1))
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
        started = time.perf_counter()
        item = self._queue.get()
        self.waited_seconds = time.perf_counter() - started
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
