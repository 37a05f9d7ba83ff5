"""What the live model says to fixed prompts, recorded in every checkpoint, so that an export can be held against it.

Prompts and the token ids asked for are pure functions of the vocabulary's size and are not stored; `VERSION` names
the functions. Recording is one forward of 64 tokens; the comparison is `parity.py`.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.engine.base import PackedRow, PackedRows, Scorer

VERSION = 1
"""To be raised with any change of `prompts` or `targets`: records of another version are not compared."""
COMPUTES = ("fp32", "tf32", "bf16")
_PROMPTS, _LENGTH, _TARGETS = 4, 16, 64
_PAIRS = _PROMPTS * _LENGTH * _TARGETS


@dataclass(frozen=True, slots=True)
class Reference:
    """Log-probabilities of the live model.

    Attributes:
        version: `VERSION` of the prompts.
        compute: number format the live model computed in, one of `COMPUTES`.
        log_probs: little-endian float32 in nats, one per prompt, position and target; bytes, so that a model that
            has diverged is recorded as it is.
    """

    version: int
    compute: str
    log_probs: bytes

    @property
    def log_prob_BST(self) -> np.ndarray:
        """The record of the present version as float64 [prompts, positions, targets]."""
        return np.frombuffer(self.log_probs, "<f4").astype(np.float64).reshape(_PROMPTS, _LENGTH, _TARGETS)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for manifests."""
        log_probs = base64.b64encode(self.log_probs).decode()
        return {"version": self.version, "compute": self.compute, "log_probs": log_probs}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Reference:
        """Inverse of `to_json`, strict.

        Raises:
            ValueError: a field is missing, unknown, or not as it must be.
        """
        if values.keys() != {"version", "compute", "log_probs"}:
            raise ValueError(f"reference has fields {sorted(values)}")
        version, compute, text = values["version"], values["compute"], values["log_probs"]
        if type(version) is not int or version < 1:
            raise ValueError(f"reference.version={version!r} is no version")
        if compute not in COMPUTES:
            raise ValueError(f"reference.compute={compute!r} is none of {COMPUTES}")
        if not isinstance(text, str):
            raise ValueError(f"reference.log_probs is {type(text).__name__}, not str")
        log_probs = base64.b64decode(text, validate=True)
        if version == VERSION and len(log_probs) != 4 * _PAIRS:
            raise ValueError(f"reference.log_probs has {len(log_probs)} bytes, not {4 * _PAIRS}")
        return cls(version, compute, log_probs)


def take_reference(scorer: Scorer, *, vocab_size: int, compute: str) -> Reference:
    """Asks the live model; every rank calls it and gets the same bits.

    Args:
        scorer: the live engine.
        vocab_size: true vocabulary.
        compute: number format of the engine's forward, one of `COMPUTES`.
    """
    scored = scorer.score(reference_rows(vocab_size))
    return Reference(VERSION, compute, scored.log_prob_P.astype("<f4").tobytes())


def prompts(vocab_size: int) -> np.ndarray:
    """int64 token ids [prompts, positions], the same on every machine and for every version of numpy."""
    mixed = np.arange(1, _PROMPTS * _LENGTH + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # wraps around
    mixed ^= mixed >> np.uint64(32)
    return (mixed % np.uint64(vocab_size)).astype(np.int64).reshape(_PROMPTS, _LENGTH)


def targets(vocab_size: int) -> np.ndarray:
    """int64 token ids [prompts, positions, targets]: each position's are spread evenly over the vocabulary.

    Together they are all of it where it has no more than 4,096 pieces, otherwise 4,096 evenly spaced ones.
    """
    ids = np.arange(_PAIRS) * max(vocab_size, _PAIRS) // _PAIRS % vocab_size
    return ids.reshape(_TARGETS, _PROMPTS, _LENGTH).transpose(1, 2, 0)


def reference_rows(vocab_size: int) -> PackedRows:
    """The prompts as one packed row of four blocks."""
    size = _PROMPTS * _LENGTH
    row = PackedRow(
        prefix=0,
        num_blocks=_PROMPTS,
        block_length=_LENGTH,
        tokens_S=prompts(vocab_size).reshape(-1).astype(np.int32),
        positions_S=np.tile(np.arange(_LENGTH, dtype=np.int32), _PROMPTS),
        ends_S=np.repeat((np.arange(_PROMPTS, dtype=np.int32) + 1) * _LENGTH, _LENGTH),
        num_real_tokens=size,
        wanted_W=np.arange(size),
        pair_wanted_P=np.repeat(np.arange(size), _TARGETS),
        pair_target_P=targets(vocab_size).reshape(-1),
        pair_id_P=np.arange(_PAIRS),
    )
    digest = hashlib.sha256(row.tokens_S.tobytes() + row.pair_target_P.tobytes()).hexdigest()
    return PackedRows(rows=[row], num_pairs=_PAIRS, digest=digest)
