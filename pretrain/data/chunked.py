"""Amber's order: a fixed number of chunks, each with the mix of the whole, one after the other, shuffled within.

Sample i of every source goes to chunk i mod num_chunks (LLM360/amber-data-prep, `mix_and_split`), so a chunk is a
small image of the whole. A chunk ends with its last whole batch: Amber's 1,706,976 samples make 762 steps of 2,240,
and 96 are dropped. Unlike Amber's, whose shuffle depended on when it was restarted, the order within a chunk is a
function of the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from pretrain.data.order import SampleLocations, count_windows
from pretrain.data.permutation import permutation_key, permute_array
from pretrain.errors import ConfigError, DataError


class ChunkedOrder:
    """Chunks of whole batches.

    Attributes:
        sources: names of the sources that are trained on, sorted.
        sequence_length: S, tokens a sample is trained on.
        num_windows: windows of each source that one pass over all chunks goes through, those that are dropped included.
        global_batch_size: samples of a step over all ranks.
        rows: int64 [num_chunks, num_sources], samples of each source in each chunk.
        chunk_steps: int64 [num_chunks], optimizer steps of each chunk.
        dropped: int64 [num_chunks], samples at the end of each chunk that fill no batch.
    """

    def __init__(
        self,
        rows: np.ndarray,
        *,
        sources: Sequence[str],
        seed: int,
        sequence_length: int,
        global_batch_size: int,
        is_cut: bool,
    ) -> None:
        """Lays out the chunks; `from_streams` and `from_rows` say which rows they have.

        Args:
            rows: int64 [num_chunks, num_sources], samples of each source in each chunk.
            sources: their names, sorted.
            seed: `run.seed`.
            sequence_length: S.
            global_batch_size: samples of a step over all ranks.
            is_cut: samples were cut beforehand: they are S + 1 tokens each and lie one after the other, chunk after
                chunk. Otherwise they are windows of a stream, each overlapping the next by one token.

        Raises:
            ConfigError: a chunk has no whole batch.
        """
        self.sources, self.sequence_length, self.rows = tuple(sources), sequence_length, rows
        self.num_windows = tuple(int(n) for n in rows.sum(axis=0))
        self.global_batch_size = global_batch_size
        sizes = rows.sum(axis=1)
        self.chunk_steps = sizes // global_batch_size
        self.dropped = sizes - self.chunk_steps * global_batch_size
        if not self.chunk_steps.all():
            short = int(np.argmin(self.chunk_steps))
            raise ConfigError(
                f"data.order=chunked: chunk {short} has {int(sizes[short])} samples, less than one batch of "
                f"train.global_batch_size={global_batch_size}. Lower data.num_chunks={len(rows)} or the batch size."
            )
        self._first = np.concatenate(([0], np.cumsum(self.chunk_steps * global_batch_size)))
        self._offsets = np.concatenate((np.zeros((len(rows), 1), np.int64), np.cumsum(rows, axis=1)), axis=1)
        self._rows_before = np.concatenate((np.zeros((1, rows.shape[1]), np.int64), np.cumsum(rows, axis=0)))[:-1]
        self._seed, self._is_cut = seed, is_cut
        self._key = lru_cache(maxsize=64)(permutation_key)

    @classmethod
    def from_streams(
        cls,
        num_tokens: Mapping[str, int],
        *,
        num_chunks: int,
        seed: int,
        sequence_length: int,
        global_batch_size: int,
    ) -> ChunkedOrder:
        """Windows cut from the sources' streams; those that would make some chunks larger than others are left out.

        Args:
            num_tokens: training tokens of each source that is trained on.
            num_chunks: `data.num_chunks`.
            seed: `run.seed`.
            sequence_length: S.
            global_batch_size: samples of a step over all ranks.

        Raises:
            DataError: a source has less than one window a chunk.
            ConfigError: a chunk has no whole batch.
        """
        sources = sorted(num_tokens)
        windows = count_windows(sources, num_tokens, sequence_length=sequence_length)
        for name, count in zip(sources, windows, strict=True):
            if count < num_chunks:
                raise DataError(
                    f"data.sources.{name} has {count} samples, which cannot be dealt to data.num_chunks={num_chunks} "
                    "chunks. Lower data.num_chunks, give it more text, or set its weight to 0."
                )
        rows = np.tile(np.array(windows, dtype=np.int64) // num_chunks, (num_chunks, 1))
        return cls(
            rows,
            sources=sources,
            seed=seed,
            sequence_length=sequence_length,
            global_batch_size=global_batch_size,
            is_cut=False,
        )

    @classmethod
    def from_rows(
        cls, chunk_rows: Mapping[str, Sequence[int]], *, seed: int, sequence_length: int, global_batch_size: int
    ) -> ChunkedOrder:
        """Samples that came tokenised and dealt to chunks, as LLM360/AmberDatasets has them.

        Args:
            chunk_rows: of each source, its samples in each chunk.
            seed: `run.seed`.
            sequence_length: S.
            global_batch_size: samples of a step over all ranks.

        Raises:
            ConfigError: a chunk has no whole batch.
        """
        sources = sorted(name for name, rows in chunk_rows.items() if any(rows))
        return cls(
            np.array([chunk_rows[name] for name in sources], dtype=np.int64).T.copy(),
            sources=sources,
            seed=seed,
            sequence_length=sequence_length,
            global_batch_size=global_batch_size,
            is_cut=True,
        )

    def chunk_ends(self, total_steps: int) -> list[int]:
        """Steps after which a chunk is complete, up to a run's last step."""
        ends: list[int] = []
        per_pass = np.cumsum(self.chunk_steps)
        while not ends or ends[-1] < total_steps:
            ends += ((ends[-1] if ends else 0) + per_pass).tolist()
        return [step for step in ends if step <= total_steps]

    def locate(self, first: int, count: int) -> SampleLocations:
        """Samples [first, first + count); a pass over all chunks is followed by the next, shuffled anew."""
        epoch, place = np.divmod(np.arange(first, first + count, dtype=np.int64), self._first[-1])
        chunk = np.searchsorted(self._first, place, side="right") - 1
        source, row = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for e, c in sorted(set(zip(epoch.tolist(), chunk.tolist(), strict=True))):
            chosen = (epoch == e) & (chunk == c)
            source[chosen], row[chosen] = self._shuffled(e, c, place[chosen] - self._first[c])
        if self._is_cut:
            window = self._rows_before[chunk, source] + row
            return SampleLocations(source, epoch, window, window * (self.sequence_length + 1))
        window = chunk + row * len(self.rows)
        return SampleLocations(source, epoch, window, window * self.sequence_length)

    def counts_before(self, index: int) -> np.ndarray:
        """Samples that each source has given among the first `index`, float64 [num_sources].

        Which samples are dropped, and which of a chunk come first, is left to the shuffle. Here they count as an even
        mix of their chunk: what is returned is the mean over all seeds.
        """
        sizes = self.rows.sum(axis=1)
        trained = self.rows * ((sizes - self.dropped) / sizes)[:, None]
        passes, place = divmod(index, int(self._first[-1]))
        chunk = int(np.searchsorted(self._first, place, side="right")) - 1
        begun = self.rows[chunk] * ((place - self._first[chunk]) / sizes[chunk])
        counts: np.ndarray = passes * trained.sum(axis=0) + trained[:chunk].sum(axis=0) + begun
        return counts

    def _shuffled(self, epoch: int, chunk: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source, and which of its rows of the chunk, of the samples at some places of a shuffled chunk."""
        offsets = self._offsets[chunk]
        key = self._key(self._seed, f"chunk {chunk}", epoch)
        found = permute_array(key, int(offsets[-1]), places)
        source = np.searchsorted(offsets, found, side="right") - 1
        return source, found - offsets[source]
