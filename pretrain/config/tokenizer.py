"""SentencePiece tokenizer: an existing model, or one trained on the run's own text."""

from __future__ import annotations

from dataclasses import dataclass, field

PRESETS = ("llama", "openllama_v1", "openllama_v2")
LOSSES = (
    "unicode_forms",
    "letter_case",
    "control_characters",
    "invisible_characters",
    "space_symbol",
    "tabs",
    "carriage_returns",
    "newlines",
    "repeated_spaces",
    "leading_spaces",
    "trailing_spaces",
    "other",
)
"""Kinds of text a tokenizer may lose; `pretrain.data.tokenizer_loss` says what each is."""


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    path: str | None = None
    """An existing `tokenizer.model`. Null: train one on the run's training text (LLaMA's settings)."""
    vocab_size: int = 32000
    """Pieces of a tokenizer to train; with `path`, the size that model must have."""
    preset: str = "llama"
    """Settings of a tokenizer to train: `llama`, `openllama_v1` (merges repeated spaces: its known defect) or
    `openllama_v2`. Without effect where `path` is given."""
    accept_loss: list[str] = field(default_factory=list)
    """Kinds of text that the tokenizer may lose, by the names `python -m pretrain.data check_tokenizer` gives them, for
    example `repeated_spaces`. What is lost and not listed stops preparation."""
    training_bytes: int = 10_000_000
    """At most this much text trains the tokenizer, taken from all sources by their weight."""
    add_bos: bool = False
    """Put `<s>` before each document, and before a prompt in scoring."""
    add_eos: bool = True
    """Put `</s>` after each document."""
