"""SentencePiece tokenizer: an existing model, or one trained on the run's own text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    path: str | None = None
    """An existing `tokenizer.model`. Null: train one on the run's training text (LLaMA's settings)."""
    vocab_size: int = 32000
    """Pieces of a tokenizer to train; with `path`, the size that model must have."""
    training_bytes: int = 10_000_000
    """At most this much text trains the tokenizer, taken from all sources by their weight."""
    add_bos: bool = False
    """Put `<s>` before each document, and before a prompt in scoring."""
    add_eos: bool = True
    """Put `</s>` after each document."""
