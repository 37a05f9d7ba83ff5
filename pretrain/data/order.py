"""Which window of which source is sample i: a pure function of (sources, weights, seed, i), computed on demand.

Nothing is stored per sample and nothing depends on world size, layout, restarts or the run's length. Within an
epoch of a source every window occurs exactly once, in an order keyed by (seed, source, epoch). Which source
comes when is `mixture.py`'s business; reading tokens is `loader.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pretrain.data.mixture import Mixture
from pretrain.errors import DataError

_ROUNDS = 8
_MASK = (1 << 64) - 1
# Finaliser of MurmurHash3 (fmix64): every output bit depends on every input bit.
_MULTIPLIERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
# Feistel halves of a few bits reach few of the permutations; up to this size, keyed hashes are sorted instead.
_LARGEST_SORTED = 1024


def permutation_key(seed: int, source: str, epoch: int) -> tuple[int, ...]:
    """Round keys of one epoch's order: 64-bit integers from blake2b."""
    text = f"{seed}/{epoch}/{source}"
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS, person=b"fineline-order").digest()
    return tuple(int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(_ROUNDS))


def permute(key: tuple[int, ...], n: int, index: int) -> int:
    """Where a keyed pseudo-random permutation of [0, n) sends an index.

    An alternating Feistel network on the next power of two, walked until it lands below n (cycle walking),
    so it is a bijection for every n and key. Equal to `permute_array` element by element.
    """
    assert 0 <= index < n, f"index {index} is not in [0, {n})"
    if n <= _LARGEST_SORTED:
        return int(_sorted_permutation(key, n)[index])
    low_bits, high_bits = _halves(n)
    while True:
        low, high = index & ((1 << low_bits) - 1), index >> low_bits
        for r, k in enumerate(key):
            if r % 2:
                low ^= _mix(high ^ k) & ((1 << low_bits) - 1)
            else:
                high ^= _mix(low ^ k) & ((1 << high_bits) - 1)
        index = high << low_bits | low
        if index < n:
            return index


def permute_array(key: tuple[int, ...], n: int, indices: np.ndarray) -> np.ndarray:
    """`permute` of each index.

    Args:
        key: from `permutation_key`.
        n: size of the permuted range, at least 1.
        indices: integers in [0, n), any shape.

    Returns:
        int64 array of the same shape.
    """
    if n <= _LARGEST_SORTED:
        return _sorted_permutation(key, n)[np.asarray(indices, dtype=np.int64)]
    low_bits, high_bits = (np.uint64(bits) for bits in _halves(n))
    low_mask, high_mask = (np.uint64((1 << int(bits)) - 1) for bits in (low_bits, high_bits))
    out = np.array(indices, dtype=np.uint64)
    flat = out.reshape(-1)
    walking = np.arange(flat.size)
    while walking.size:
        values = flat[walking]
        low, high = values & low_mask, values >> low_bits
        for r, k in enumerate(key):
            if r % 2:
                low ^= _mix_array(high ^ np.uint64(k)) & low_mask
            else:
                high ^= _mix_array(low ^ np.uint64(k)) & high_mask
        values = high << low_bits | low
        flat[walking] = values
        walking = walking[values >= n]
    return flat.reshape(out.shape).astype(np.int64)


@dataclass(frozen=True, slots=True)
class SampleLocations:
    """Where samples are, one entry per sample.

    Attributes:
        source: int64 [N], index into `SampleOrder.sources`.
        epoch: int64 [N], how many times the source was used up before.
        window: int64 [N], window of the source; it covers tokens [w·S, w·S + S + 1) of its stream.
    """

    source: np.ndarray
    epoch: np.ndarray
    window: np.ndarray


class SampleOrder:
    """The endless order of samples of a run.

    Attributes:
        sources: names of the sources that are trained on, sorted: the order does not depend on how the
            configuration lists them.
        sequence_length: tokens a sample is trained on; windows are one longer and overlap by one.
        num_windows: windows per source, in the order of `sources`.
        mixture: the schedule of sources.
    """

    def __init__(
        self, *, seed: int, weights: Mapping[str, float], num_tokens: Mapping[str, int], sequence_length: int
    ) -> None:
        """Prepares the schedule; takes the same time however long the run.

        Args:
            seed: `run.seed`.
            weights: relative share of samples per source; sources of weight 0 are left out.
            num_tokens: training tokens per source.
            sequence_length: S, tokens a sample is trained on.

        Raises:
            ConfigError: the weights make no mixture.
            DataError: a source is too short for one window.
        """
        self.sequence_length = sequence_length
        self.mixture = Mixture(weights)
        self.sources = self.mixture.sources
        self._seed = seed
        for name in self.sources:
            if num_tokens[name] < sequence_length + 1:
                raise DataError(
                    f"data.sources.{name} has {num_tokens[name]} training tokens; one sample takes "
                    f"train.sequence_length + 1 = {sequence_length + 1}. Give it more text, set its weight to 0, or "
                    "lower train.sequence_length."
                )
        self.num_windows = tuple((num_tokens[name] - 1) // sequence_length for name in self.sources)
        self._key = lru_cache(maxsize=1024)(permutation_key)

    def locate(self, first_sample: int, count: int) -> SampleLocations:
        """Samples [first_sample, first_sample + count); each is found without the ones before it."""
        source, draw = self.mixture.draws(first_sample, count)
        epoch, window = np.divmod(draw, np.array(self.num_windows, dtype=np.int64)[source])
        for s, e in sorted(set(zip(source.tolist(), epoch.tolist(), strict=True))):
            chosen = (source == s) & (epoch == e)
            key = self._key(self._seed, self.sources[s], e)
            window[chosen] = permute_array(key, self.num_windows[s], window[chosen])
        return SampleLocations(source, epoch, window)

    def source_samples(self, num_samples: int) -> dict[str, int]:
        """How many of a run's first samples come from each source."""
        return dict(zip(self.sources, self.mixture.counts_before(num_samples).tolist(), strict=True))


def _sorted_permutation(key: tuple[int, ...], n: int) -> np.ndarray:
    hashes = np.arange(n, dtype=np.uint64)
    for k in key[:2]:
        hashes = _mix_array(hashes ^ np.uint64(k))
    return np.argsort(hashes, kind="stable").astype(np.int64)


def _halves(n: int) -> tuple[int, int]:
    bits = (n - 1).bit_length()
    return bits // 2, bits - bits // 2


def _mix(value: int) -> int:
    for multiplier in _MULTIPLIERS:
        value = (value ^ value >> 33) * multiplier & _MASK
    return value ^ value >> 33


def _mix_array(values: np.ndarray) -> np.ndarray:
    for multiplier in _MULTIPLIERS:
        values = (values ^ values >> np.uint64(33)) * np.uint64(multiplier)
    return np.asarray(values ^ values >> np.uint64(33))
