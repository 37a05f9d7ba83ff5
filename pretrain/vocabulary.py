"""Whether a tokenizer has the pieces that a model was made for, padding aside. Arithmetic only."""

from __future__ import annotations

_PADDED_TO, _SMALL_PADDED_TO, _SMALL = 1024, 128, 4096
"""Megatron pads to 128 times the tensor-parallel ranks, at most 8 as a rule; nobody pads a small vocabulary so far."""


def missing_pieces(*, num_pieces: int, vocab_size: int) -> str | None:
    """What is odd about a tokenizer that has far fewer pieces than a model has rows for.

    A model may have as many rows as rounding the pieces up to a multiple of 1,024 gives, or of 128 where there are
    fewer than 4,096 pieces.

    Args:
        num_pieces: of the tokenizer.
        vocab_size: of the model.

    Returns:
        A sentence; None where padding explains the difference.
    """
    multiple = _PADDED_TO if num_pieces >= _SMALL else _SMALL_PADDED_TO
    if vocab_size <= -(-num_pieces // multiple) * multiple:
        return None
    return (
        f"The tokenizer has {num_pieces:,} pieces, the model a vocabulary of {vocab_size:,}: more than padding to a "
        f"multiple of {multiple:,} explains."
    )
