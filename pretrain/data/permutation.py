"""A keyed pseudo-random order of n things in closed form: no list of n numbers is ever made or stored.

An alternating Feistel network on the next power of two, walked until it lands below n (cycle walking: Black and
Rogaway, CT-RSA 2002), so it is a bijection for every n and key, and any index is found without the others.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 8
# Finaliser of MurmurHash3 (fmix64): every output bit depends on every input bit.
_MULTIPLIERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
# Feistel halves of a few bits reach few of the permutations; up to this size, keyed hashes are sorted instead.
_LARGEST_SORTED = 1024


def permutation_key(seed: int, name: str, epoch: int) -> tuple[int, ...]:
    """Round keys of one epoch's order: 64-bit integers from blake2b.

    Args:
        seed: `run.seed`.
        name: what is permuted, a source for example.
        epoch: how many times it was gone through before.
    """
    text = f"{seed}/{epoch}/{name}"
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS, person=b"fineline-order").digest()
    return tuple(int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(_ROUNDS))


def permute(key: tuple[int, ...], n: int, index: int) -> int:
    """Where the permutation of [0, n) sends an index; equal to `permute_array` element by element."""
    assert 0 <= index < n, f"index {index} is not in [0, {n})"
    return int(permute_array(key, n, np.array([index], dtype=np.int64))[0])


def permute_array(key: tuple[int, ...], n: int, indices: np.ndarray) -> np.ndarray:
    """Where the permutation of [0, n) sends each index.

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
                low ^= _mix(high ^ np.uint64(k)) & low_mask
            else:
                high ^= _mix(low ^ np.uint64(k)) & high_mask
        values = high << low_bits | low
        flat[walking] = values
        walking = walking[values >= n]
    return flat.reshape(out.shape).astype(np.int64)


def _sorted_permutation(key: tuple[int, ...], n: int) -> np.ndarray:
    hashes = np.arange(n, dtype=np.uint64)
    for k in key[:2]:
        hashes = _mix(hashes ^ np.uint64(k))
    return np.argsort(hashes, kind="stable").astype(np.int64)


def _halves(n: int) -> tuple[int, int]:
    bits = (n - 1).bit_length()
    return bits // 2, bits - bits // 2


def _mix(values: np.ndarray) -> np.ndarray:
    for multiplier in _MULTIPLIERS:
        values = (values ^ values >> np.uint64(33)) * np.uint64(multiplier)
    return np.asarray(values ^ values >> np.uint64(33))
