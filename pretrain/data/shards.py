"""Documents in, token shards out: one `.bin/.idx` pair per source and split, by Megatron-core's own builder.

Knows one source at a time; which sources there are, where shards live and when they are complete is `prepare.py`'s
business. Documents keep their order whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pretrain.data.documents import Document, read_documents
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import DataError

SPLITS = ("train", "validation")
_BATCH_CHARACTERS = 1 << 20
_BATCHES_PER_PROCESS = 3


@dataclass(slots=True)
class SplitCounts:
    """What one split of a source holds.

    Attributes:
        documents: documents that are not empty.
        tokens: tokens, BOS and EOS included.
        bytes: UTF-8 bytes of text.
        characters: Unicode code points of text.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    characters: int = 0

    def add(self, other: SplitCounts) -> None:
        """Adds another shard's counts."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.bytes += other.bytes
        self.characters += other.characters

    def as_dict(self) -> dict[str, int]:
        """Plain values, for the manifest."""
        return asdict(self)


class Encoder:
    """Encodes batches of documents in order, in this process or in several.

    With processes, a bounded number of batches is in flight, so memory does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, num_processes: int) -> None:
        self.tokenizer = tokenizer
        self._num_processes = num_processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Encoder:
        if self._num_processes > 1:
            # Not fork: the caller may hold threads and process groups.
            self._pool = ProcessPoolExecutor(
                self._num_processes, get_context("spawn"), _start_process, (self.tokenizer.model,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, documents: Iterable[Document]) -> Iterator[tuple[Document, np.ndarray]]:
        """Each document with its ids, int32, in order.

        Raises:
            DataError: an encoding process was killed.
        """
        if self._pool is None:
            for document in documents:
                yield document, self.tokenizer.encode_array(document.text)
            return
        waiting: deque[tuple[list[Document], Future[list[bytes]]]] = deque()
        try:
            for batch in _batches(documents):
                waiting.append((batch, self._pool.submit(_encode_texts, [document.text for document in batch])))
                if len(waiting) >= _BATCHES_PER_PROCESS * self._num_processes:
                    yield from _finished(*waiting.popleft())
            while waiting:
                yield from _finished(*waiting.popleft())
        except BrokenProcessPool:
            raise DataError(
                f"One of {self._num_processes} tokenising processes was killed, most often for lack of memory. "
                "Free memory and start again; nothing unfinished is kept."
            ) from None


class _Writer:
    """One shard being written."""

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # what it misses concerns GPUs only
            from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

        self.prefix = prefix
        self.counts = SplitCounts()
        dtype: Any = DType.optimal_dtype(vocab_size)
        self._builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)

    def add(self, document: Document, ids: np.ndarray) -> None:
        import torch

        self._builder.add_document(torch.from_numpy(ids), [len(ids)])
        self.counts.add(SplitCounts(1, len(ids), len(document.text.encode()), len(document.text)))

    def close(self) -> None:
        """Writes the index; a shard without documents leaves no files."""
        self._builder.finalize(f"{self.prefix}.idx")
        if self.counts.documents == 0:
            self.delete()

    def append(self, other: _Writer) -> None:
        """Takes over a closed shard and deletes it."""
        if other.counts.documents:
            self._builder.add_index(str(other.prefix))
            self.counts.add(other.counts)
            other.delete()

    def delete(self) -> None:
        for ending in (".bin", ".idx"):
            Path(f"{self.prefix}{ending}").unlink()

    def rename(self, prefix: Path) -> None:
        for ending in (".bin", ".idx") if self.counts.documents else ():
            Path(f"{self.prefix}{ending}").rename(f"{prefix}{ending}")


def write_source(
    name: str,
    paths: Sequence[Path],
    *,
    directory: Path,
    encoder: Encoder,
    text_key: str,
    holdout_fraction: float,
    add_bos: bool,
    add_eos: bool,
) -> dict[str, SplitCounts]:
    """Tokenises one source into `<directory>/<name>.{train,validation}.{bin,idx}`.

    Marked documents are the validation split. Only where none is marked it is those held out by hash; since that
    is known at the end only, these wait in a shard of their own, which otherwise ends up behind the training text.

    Returns:
        Counts of `train` and `validation`; a split without documents has no files.

    Raises:
        DataError: see `read_documents`.
    """
    tokenizer = encoder.tokenizer
    writers = {
        split: _Writer(directory / f"{name}.{split}", vocab_size=tokenizer.vocab_size) for split in (*SPLITS, "heldout")
    }
    bos = np.array([tokenizer.bos_id] if add_bos else [], dtype=np.int32)
    eos = np.array([tokenizer.eos_id] if add_eos else [], dtype=np.int32)
    documents = (document for document in read_documents(paths, text_key=text_key) if document.text)
    for document, ids in encoder.encode(documents):
        split = document.split or ("heldout" if is_held_out(document.text, holdout_fraction) else "train")
        writers[split].add(document, np.concatenate((bos, ids, eos)))
    train, validation, heldout = (writers[split] for split in (*SPLITS, "heldout"))
    heldout.close()
    if validation.counts.documents:
        train.append(heldout)
    validation.close()
    train.close()
    if not validation.counts.documents:
        heldout.rename(validation.prefix)
        validation.counts = heldout.counts
    return {"train": train.counts, "validation": validation.counts}


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the share held out by hash; depends on its text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2.0**64


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _finished(batch: list[Document], encoded: Future[list[bytes]]) -> Iterator[tuple[Document, np.ndarray]]:
    for document, ids in zip(batch, encoded.result(), strict=True):
        yield document, np.frombuffer(ids, dtype=np.int32)


_process_tokenizer: Tokenizer


def _start_process(model: bytes) -> None:
    global _process_tokenizer
    _process_tokenizer = Tokenizer(model)


def _encode_texts(texts: list[str]) -> list[bytes]:
    return [_process_tokenizer.encode_array(text).tobytes() for text in texts]
