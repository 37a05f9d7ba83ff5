"""Which source each sample comes from: shares in, an exact periodic schedule out.

Sampling sources at random would leave the mixture of a run to chance and make seeking slow. Instead one period of
65,536 samples is laid out such that every source is within one sample of its share at every prefix, and repeated.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

import numpy as np

from pretrain.errors import ConfigError

PERIOD = 65_536
"""Q: effective shares are multiples of 1/Q, the weights' nearest by largest remainder."""


class Mixture:
    """The schedule of sources.

    Attributes:
        sources: names of the sources with a weight above 0, sorted.
        counts: samples of each in one period, int64 [num_sources]; they add up to `PERIOD`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Lays out one period.

        Args:
            weights: relative shares; 0 leaves a source out.

        Raises:
            ConfigError: a weight is negative, not finite, or too small to be drawn; or all are 0.
        """
        _check(weights)
        self.sources = tuple(sorted(name for name, weight in weights.items() if weight > 0))
        self.counts = _round_to_period([weights[name] for name in self.sources], names=self.sources)
        self._source_Q = schedule(self.counts)
        self._rank_Q = _ranks(self._source_Q, len(self.counts))

    @property
    def shares(self) -> dict[str, float]:
        """Effective share of samples per source."""
        return {name: int(count) / PERIOD for name, count in zip(self.sources, self.counts, strict=True)}

    def draws(self, first_sample: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Source, and which of its draws, of samples [first_sample, first_sample + count).

        Returns:
            Two int64 arrays [count]: index into `sources`, and k when the sample is the source's k-th, from 0.
        """
        period, place = np.divmod(np.arange(first_sample, first_sample + count, dtype=np.int64), PERIOD)
        source = self._source_Q[place].astype(np.int64)
        return source, period * self.counts[source] + self._rank_Q[place]

    def counts_before(self, num_samples: int) -> np.ndarray:
        """Samples of each source among the first `num_samples`, int64 [num_sources]."""
        periods, rest = divmod(num_samples, PERIOD)
        return periods * self.counts + np.bincount(self._source_Q[:rest], minlength=len(self.counts))


def schedule(counts: np.ndarray) -> np.ndarray:
    """Orders sum(counts) draws so that every prefix holds less than one draw more or less than each source's share.

    Tijdeman's chairman assignment (Discrete Mathematics 32, 1980), as scheduling of unit jobs: with share c/Q, draw
    k of a source must fall into slots [floor(kQ/c), ceil((k+1)Q/c)). Among the draws that may start, the one with the
    earliest deadline goes first; a schedule that keeps all deadlines exists, and earliest deadline first finds it.

    Args:
        counts: positive draws per source.

    Returns:
        uint16 [sum(counts)], the source of each slot.
    """
    num_sources, total = len(counts), int(np.sum(counts))
    draw_starts, draw_codes = [], []
    for source, count in enumerate(int(c) for c in counts):
        k = np.arange(count, dtype=np.int64)
        draw_starts.append(k * total // count)
        deadline = -((k + 1) * -total // count)
        draw_codes.append(deadline * num_sources + source)
    starts, codes = np.concatenate(draw_starts), np.concatenate(draw_codes)
    order = np.argsort(starts, kind="stable")
    arrivals = codes[order].tolist()
    arrived_before = np.searchsorted(starts[order], np.arange(total), side="right").tolist()
    ready: list[int] = []
    chosen = []
    arrived = 0
    for until in arrived_before:
        if until == arrived + 1 and ready:
            chosen.append(heapq.heappushpop(ready, arrivals[arrived]))
        else:
            for code in arrivals[arrived:until]:
                heapq.heappush(ready, code)
            chosen.append(heapq.heappop(ready))
        arrived = until
    return (np.array(chosen, dtype=np.int64) % num_sources).astype(np.uint16)


def _check(weights: Mapping[str, float]) -> None:
    problems = [
        f"data.sources.{name}.weight={weight} is not a share; give a finite number of at least 0."
        for name, weight in weights.items()
        if not (math.isfinite(weight) and weight >= 0)
    ]
    if not problems and not any(weights.values()):
        problems = [
            f"data.sources ({', '.join(weights) or 'none'}) have no weight above 0: there is nothing to train on."
        ]
    if problems:
        raise ConfigError(problems)


def _round_to_period(weights: list[float], *, names: tuple[str, ...]) -> np.ndarray:
    """Largest remainder: whole samples per period that add up to it; ties go to the earlier name."""
    exact = np.array(weights, dtype=np.float64) / math.fsum(weights) * PERIOD
    counts = np.floor(exact).astype(np.int64)
    missing = PERIOD - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    if (counts == 0).any():
        problems = [
            f"data.sources.{names[i]}.weight={weights[i]} is {exact[i] / PERIOD:.2e} of all weights, less than the "
            f"smallest share 1/{PERIOD}: it would never be drawn. Raise it, or set it to 0."
            for i in np.flatnonzero(counts == 0)
        ]
        raise ConfigError(problems)
    return counts


def _ranks(source_Q: np.ndarray, num_sources: int) -> np.ndarray:
    """How many earlier slots of the period have the same source, int64 [Q]."""
    ranks = np.empty(len(source_Q), dtype=np.int64)
    for source in range(num_sources):
        places = np.flatnonzero(source_Q == source)
        ranks[places] = np.arange(len(places))
    return ranks
