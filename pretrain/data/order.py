"""Which window of which source is sample i: a pure function of (data, seed, i), computed on demand.

Nothing is stored per sample and nothing depends on world size, layout, restarts or the run's length. Three orders:
`mixture` and `sequential` here, `chunked` in `chunked.py`. Which source comes when in a mixture is `mixture.py`'s
business, what is left out `pretrain/skips.py`'s; reading tokens is `loader.py`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np

from pretrain.data.mixture import Mixture
from pretrain.data.permutation import permutation_key, permute_array
from pretrain.errors import DataError
from pretrain.skips import Skips


@dataclass(frozen=True, slots=True)
class SampleLocations:
    """Where samples are, one entry per sample.

    Attributes:
        source: int64 [N], index into `SampleOrder.sources`.
        epoch: int64 [N], how many times the source was used up before.
        window: int64 [N], number of the window in its source's stream.
        start: int64 [N], stream position of the window's first token; it covers tokens [start, start + S + 1).
    """

    source: np.ndarray
    epoch: np.ndarray
    window: np.ndarray
    start: np.ndarray


class Order(Protocol):
    """An endless order of windows, before anything is left out.

    Attributes:
        sources: names of the sources that are trained on.
        sequence_length: S, tokens a sample is trained on.
        num_windows: windows of each source that one epoch goes through.
    """

    sources: tuple[str, ...]
    sequence_length: int
    num_windows: tuple[int, ...]

    def locate(self, first: int, count: int) -> SampleLocations:
        """Samples [first, first + count); each is found without the ones before it."""
        ...

    def counts_before(self, index: int) -> np.ndarray:
        """Samples that each source has given among the first `index`, [num_sources], in closed form."""
        ...


class SampleOrder:
    """An order without what a run leaves out: what the loader asks.

    Attributes:
        order: the order that samples are left out of.
        skips: what is left out.
        sources: names of the sources that are trained on.
        sequence_length: S, tokens a sample is trained on.
        num_windows: windows of each source that one epoch goes through.
    """

    def __init__(self, order: Order, skips: Skips | None = None) -> None:
        self.order, self.skips = order, skips or Skips()
        self.sources, self.sequence_length, self.num_windows = order.sources, order.sequence_length, order.num_windows

    def locate(self, first_sample: int, count: int) -> SampleLocations:
        """Samples [first_sample, first_sample + count) of those that are trained on."""
        if not self.skips.ranges:
            return self.order.locate(first_sample, count)
        parts = [self.order.locate(first, length) for first, length in self.skips.runs(first_sample, count)]
        if not parts:
            return self.order.locate(0, 0)
        return SampleLocations(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in SampleLocations.__slots__)
        )

    def counts(self, num_samples: int) -> np.ndarray:
        """Samples that each source gives among the first `num_samples` that are trained on, [num_sources].

        Exact, but for `chunked`, where what a chunk leaves out counts as an even mix of it.
        """
        runs = list(self.skips.runs(0, num_samples)) if self.skips.ranges else [(0, num_samples)]
        parts = [self.order.counts_before(first + n) - self.order.counts_before(first) for first, n in runs]
        return np.sum(parts, axis=0) if parts else self.order.counts_before(0)

    @property
    def epoch_tokens(self) -> dict[str, int]:
        """Tokens that one epoch of each source trains on."""
        return {name: n * self.sequence_length for name, n in zip(self.sources, self.num_windows, strict=True)}


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of sources, in force from a sample on.

    Attributes:
        first: index of the first sample they hold for.
        weights: relative share of samples per source, exact.
        drawn: samples that each source has given before; sources that gave none may be missing.
    """

    first: int
    weights: Mapping[str, Fraction]
    drawn: Mapping[str, int] = field(default_factory=dict)


class MixtureOrder:
    """Sources by share. Within an epoch of a source every window occurs once, ordered by (seed, source, epoch).

    When shares change on the way, each source goes on in its own epoch where it stood, so nothing is repeated early.

    Attributes: see `Order`; sources are sorted, so that the order does not depend on how they are listed.
    """

    def __init__(
        self, shares: Sequence[Shares], *, seed: int, num_tokens: Mapping[str, int], sequence_length: int
    ) -> None:
        """Prepares the schedule; takes the same time however long the run.

        Args:
            shares: in the order in which they came into force; the first from sample 0.
            seed: `run.seed`.
            num_tokens: training tokens per source.
            sequence_length: S, tokens a sample is trained on.

        Raises:
            ConfigError: the weights make no mixture.
            DataError: a source is too short for one window.
        """
        assert shares and shares[0].first == 0, "an order begins at sample 0"
        self.sequence_length = sequence_length
        self._shares = tuple(shares)
        self._mixtures = [Mixture(one.weights) for one in shares]
        self.sources = tuple(sorted({name for mixture in self._mixtures for name in mixture.sources}))
        self.num_windows = count_windows(self.sources, num_tokens, sequence_length=sequence_length)
        # Index into `sources` of each mixture's own sources, and how many draws of them came before it.
        self._places = [np.array([self.sources.index(n) for n in m.sources], dtype=np.int64) for m in self._mixtures]
        self._drawn = [
            np.array([one.drawn.get(n, 0) for n in m.sources], dtype=np.int64)
            for one, m in zip(shares, self._mixtures, strict=True)
        ]
        self._seed = seed
        self._key = lru_cache(maxsize=1024)(permutation_key)

    def locate(self, first: int, count: int) -> SampleLocations:
        """Samples [first, first + count); each is found without the ones before it."""
        source, draw = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            at = bisect_right(self._shares, first + done, key=lambda one: one.first) - 1
            until = self._shares[at + 1].first if at + 1 < len(self._shares) else first + count
            part = slice(done, min(count, until - first))
            own, k = self._mixtures[at].draws(first + done - self._shares[at].first, part.stop - done)
            source[part], draw[part] = self._places[at][own], k + self._drawn[at][own]
            done = part.stop
        epoch, window = np.divmod(draw, np.array(self.num_windows, dtype=np.int64)[source])
        for s, e in sorted(set(zip(source.tolist(), epoch.tolist(), strict=True))):
            chosen = (source == s) & (epoch == e)
            key = self._key(self._seed, self.sources[s], e)
            window[chosen] = permute_array(key, self.num_windows[s], window[chosen])
        return SampleLocations(source, epoch, window, window * self.sequence_length)

    def drawn_before(self, index: int) -> dict[str, int]:
        """Samples that each source has given among the first `index`; sources that gave none are left out."""
        at = max(0, bisect_right(self._shares, index - 1, key=lambda one: one.first) - 1)
        drawn = dict(self._shares[at].drawn)
        mixture = self._mixtures[at]
        counts = mixture.counts_before(index - self._shares[at].first).tolist()
        for name, count in zip(mixture.sources, counts, strict=True):
            drawn[name] = drawn.get(name, 0) + count
        return {name: count for name, count in drawn.items() if count}

    def counts_before(self, index: int) -> np.ndarray:
        """Samples that each source has given among the first `index`, int64 [num_sources]."""
        drawn = self.drawn_before(index)
        return np.array([drawn.get(name, 0) for name in self.sources], dtype=np.int64)


class SequentialOrder:
    """Windows as they stand in the text, source after source, over and over: OpenLLaMA's stream.

    As EasyLM cuts it (data.py, JsonDataset), except that a source's last fraction of a window is left out.

    Attributes: see `Order`; sources are in the order in which the configuration lists them.
    """

    def __init__(self, num_tokens: Mapping[str, int], *, sequence_length: int) -> None:
        """Counts windows.

        Args:
            num_tokens: training tokens of each source that is trained on, in order.
            sequence_length: S, tokens a sample is trained on.

        Raises:
            DataError: a source is too short for one window.
        """
        self.sources = tuple(num_tokens)
        self.sequence_length = sequence_length
        self.num_windows = count_windows(self.sources, num_tokens, sequence_length=sequence_length)
        self._first = np.cumsum([0, *self.num_windows])

    def locate(self, first: int, count: int) -> SampleLocations:
        """Samples [first, first + count)."""
        epoch, place = np.divmod(np.arange(first, first + count, dtype=np.int64), self._first[-1])
        source = np.searchsorted(self._first, place, side="right") - 1
        window = place - self._first[source]
        return SampleLocations(source, epoch, window, window * self.sequence_length)

    def counts_before(self, index: int) -> np.ndarray:
        """Samples that each source has given among the first `index`, int64 [num_sources]."""
        passes, place = divmod(index, int(self._first[-1]))
        windows = np.array(self.num_windows, dtype=np.int64)
        return passes * windows + np.clip(place - self._first[:-1], 0, windows)


def count_windows(sources: Sequence[str], num_tokens: Mapping[str, int], *, sequence_length: int) -> tuple[int, ...]:
    """Windows of S + 1 tokens, each overlapping the next by one, in each source.

    Raises:
        DataError: a source is too short for one.
    """
    for name in sources:
        if num_tokens[name] < sequence_length + 1:
            raise DataError(
                f"data.sources.{name} has {num_tokens[name]} training tokens; one sample takes "
                f"train.sequence_length + 1 = {sequence_length + 1}. Give it more text, set its weight to 0, or "
                "lower train.sequence_length."
            )
    return tuple((num_tokens[name] - 1) // sequence_length for name in sources)
