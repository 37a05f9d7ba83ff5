"""Which source each sample comes from: exact shares in, and at every prefix within one sample of them.

Sampling sources at random would leave the mixture of a run to chance, and a stored list would be as long as the run.
Here any stretch of the schedule is made by itself, in blocks, from whole-number arithmetic.

With shares w_s, L_s(n) = n·w_s is what source s should have had of n samples. Draw k of a source may take the slots
[floor(k/w), ceil((k+1)/w)): then every count stays within (L_s(n) - 1, L_s(n) + 1). Windows of unit jobs can all be
kept exactly when no stretch of slots holds more whole windows than slots (Hall), which is so here, because the L_s
add up to n (Tijdeman's chairman assignment, Discrete Mathematics 32, 1980; Steiner and Yeomans, Management Science
39, 1993). To make blocks independent, their borders fix which of the draws that could fall on either side came
before: see `_drawn_at`. Within a block, the earliest deadline goes first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from pretrain.errors import ConfigError

SMALLEST_SHARE = Fraction(1, 65_536)
"""Smaller shares would need longer blocks than are made in a moment."""
_SHORTEST_BLOCK = 4096
_BLOCKS_KEPT = 8
# Shares are fractions with a common denominator; numbers of a block stay below this times its length, thus in int64.
_LARGEST_DENOMINATOR = 1 << 44


@dataclass(frozen=True, slots=True)
class _Block:
    """One stretch of the schedule.

    Attributes:
        source: uint16 [B], source of each slot.
        draw: int64 [B], which of its source's draws each slot is.
        drawn_before: draws of each source before the block.
    """

    source: np.ndarray
    draw: np.ndarray
    drawn_before: tuple[int, ...]


class Mixture:
    """The endless schedule of sources.

    Attributes:
        sources: names of the sources with a weight above 0, sorted.
        shares: their exact shares of samples; they add up to 1.
        block_length: samples that are scheduled together.
    """

    def __init__(self, weights: Mapping[str, float | Fraction]) -> None:
        """Prepares the arithmetic; takes the same time however long the run.

        Args:
            weights: relative shares; a float counts as the decimal it prints as. 0 leaves a source out.

        Raises:
            ConfigError: a weight is negative, not finite, or too small to be drawn; or all are 0.
        """
        _check(weights)
        self.sources = tuple(sorted(name for name, weight in weights.items() if weight > 0))
        parts = _whole_parts([weights[name] for name in self.sources], names=self.sources)
        self._parts, self._total = parts, sum(parts)
        self.shares = {name: Fraction(part, self._total) for name, part in zip(self.sources, parts, strict=True)}
        longest_window = -(-self._total // min(parts)) + 2
        self.block_length = max(_SHORTEST_BLOCK, 1 << longest_window.bit_length())
        self._block = lru_cache(_BLOCKS_KEPT)(self._make_block)

    def draws(self, first_sample: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Source, and which of its draws, of samples [first_sample, first_sample + count).

        Returns:
            Two int64 arrays [count]: index into `sources`, and k when the sample is the source's k-th, from 0.
        """
        source, draw = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            number, place = divmod(first_sample + done, self.block_length)
            block = self._block(number)
            taken = min(count - done, self.block_length - place)
            source[done : done + taken] = block.source[place : place + taken]
            draw[done : done + taken] = block.draw[place : place + taken]
            done += taken
        return source, draw

    def counts_before(self, num_samples: int) -> np.ndarray:
        """Samples of each source among the first `num_samples`, int64 [num_sources]."""
        number, place = divmod(num_samples, self.block_length)
        block = self._block(number)
        inside = np.bincount(block.source[:place], minlength=len(self.sources))
        return np.array(block.drawn_before, dtype=np.int64) + inside

    def _make_block(self, number: int) -> _Block:
        first = number * self.block_length
        before, after = (_drawn_at(first, self._parts), _drawn_at(first + self.block_length, self._parts))
        source = _schedule(first, self.block_length, self._parts, before=before, after=after)
        draw = np.empty(self.block_length, dtype=np.int64)
        for s, start in enumerate(before):
            places = np.flatnonzero(source == s)
            draw[places] = start + np.arange(len(places))
        return _Block(source, draw, before)


def _drawn_at(sample: int, parts: tuple[int, ...]) -> tuple[int, ...]:
    """Draws of each source before a sample at which a block begins.

    Each is L_s rounded down or up, and they add up to `sample`; the question is which to round up, such that the
    blocks on both sides can keep all windows. Taken are the draws that must come soonest (so that what is left to
    the next block is as easy as can be), each only if the block before still has a slot for it. The sets that block
    can take form a matroid, hence of all of them this choice holds the most of every "due by" set at once; and since
    some choice serves both sides (some schedule of the whole exists), this one does.
    """
    total = sum(parts)
    whole = [sample * part // total for part in parts]
    straddling = [s for s, part in enumerate(parts) if sample * part % total]
    missing = sample - sum(whole)
    if not missing:
        return tuple(whole)
    # How many slots a draw that straddles the border may lie back: its window began at floor(k/w).
    reach = {s: sample - whole[s] * total // parts[s] for s in straddling}
    free = _free_slots(sample, max(reach.values()), whole, parts)
    for s in sorted(straddling, key=lambda s: (-(-(whole[s] + 1) * total // parts[s]), s)):
        if not missing:
            break
        if free[reach[s] - 1 :].min() >= 1:
            free[reach[s] - 1 :] -= 1
            whole[s] += 1
            missing -= 1
    assert not missing, f"no border of the mixture at sample {sample}: {parts}"
    return tuple(whole)


def _free_slots(sample: int, furthest: int, whole: list[int], parts: tuple[int, ...]) -> np.ndarray:
    """Of the last h slots before a sample, for h in 1…furthest, those not needed by draws that must lie there."""
    total = sum(parts)
    back = np.arange(1, furthest + 1, dtype=np.int64)
    needed = np.zeros(furthest, dtype=np.int64)
    for count, part in zip(whole, parts, strict=True):
        # ceil(L(sample - h)) relative to `count`, with numbers that stay small however far the sample.
        rest = sample * part - count * total
        earlier = -((back * part - rest) // total)
        needed += np.maximum(0, -earlier)
    return back - needed


def _schedule(
    first: int, length: int, parts: tuple[int, ...], *, before: tuple[int, ...], after: tuple[int, ...]
) -> np.ndarray:
    """Sources of slots [first, first + length), uint16, by earliest deadline first.

    Args:
        first: the first slot's sample.
        length: number of slots.
        parts: shares in units of their sum.
        before: draws of each source before the first slot.
        after: draws of each source before the slot after the last.
    """
    total, num_sources = sum(parts), len(parts)
    starts, codes = [], []
    for s, part in enumerate(parts):
        k = np.arange(after[s] - before[s], dtype=np.int64)
        # Window of draw before[s] + k, counted from `first`: floor and ceil of ((before + k)·total/part) - first.
        base = before[s] * total - first * part
        start = np.maximum((base + k * total) // part, 0)
        deadline = np.minimum(-((base + (k + 1) * total) // -part), length)
        starts.append(start)
        codes.append(deadline * num_sources + s)
    begin, code = np.concatenate(starts), np.concatenate(codes)
    order = np.argsort(begin, kind="stable")
    arrivals = code[order].tolist()
    arrived_by = np.searchsorted(begin[order], np.arange(length), side="right").tolist()
    ready: list[int] = []
    chosen = []
    arrived = 0
    for until in arrived_by:
        if until == arrived + 1 and ready:
            chosen.append(heapq.heappushpop(ready, arrivals[arrived]))
        else:
            for one in arrivals[arrived:until]:
                heapq.heappush(ready, one)
            chosen.append(heapq.heappop(ready))
        arrived = until
    return (np.array(chosen, dtype=np.int64) % num_sources).astype(np.uint16)


def _check(weights: Mapping[str, float | Fraction]) -> None:
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


def _whole_parts(weights: list[float | Fraction], *, names: tuple[str, ...]) -> tuple[int, ...]:
    """The weights as whole numbers in the same proportion.

    Decimals are taken as written: 52.81 is 5281/100. Beyond a denominator of 2^44, which takes weights of more than
    a dozen digits, they are rounded to it: one sample in 10^13.
    """
    exact = [weight if isinstance(weight, Fraction) else Fraction(repr(weight)) for weight in weights]
    total = sum(exact, Fraction(0))
    shares = [one / total for one in exact]
    problems = [
        f"data.sources.{name} would give {float(share):.2e} of all samples, less than the smallest share "
        f"{SMALLEST_SHARE}: it would hardly be drawn. Raise its weight, tokens or epochs, or leave it out."
        for name, share in zip(names, shares, strict=True)
        if share < SMALLEST_SHARE
    ]
    if problems:
        raise ConfigError(problems)
    denominator = math.lcm(*(share.denominator for share in shares))
    if denominator > _LARGEST_DENOMINATOR:
        denominator = _LARGEST_DENOMINATOR
    return tuple(round(share * denominator) for share in shares)
