"""Training a tokenizer from a sample of text, with the settings of models that are known for theirs.

Which text is the sample is `prepare.py`'s business; SentencePiece itself is `tokenizer.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pretrain.data.tokenizer import Tokenizer, train_model
from pretrain.errors import TokenizerError

_LONGEST_LINE_BYTES = 1 << 30

# The order of settings is part of the model's bytes: SentencePiece stores them as it was given them.
_LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "max_sentence_length": _LONGEST_LINE_BYTES,
}

PRESETS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    # Of its 32,000 pieces the single characters begin at 31,822 (LLaMA's at 29,871): SentencePiece's default coverage.
    # https://github.com/openlm-research/open_llama/issues/40: one piece of spaces, where LLaMA has fifteen.
    "openllama_v1": {
        **_LLAMA,
        "character_coverage": 0.9995,
        "remove_extra_whitespaces": True,
        "allow_whitespace_only_pieces": False,
    },
    "openllama_v2": dict(_LLAMA),
}
"""Settings of SentencePiece by preset.

- `llama`: BPE, digits apart, text outside the vocabulary as bytes, spaces and indentation kept.
- `openllama_v1`: its known defect is that repeated spaces are merged into one and those at a document's ends dropped,
  so that indented code cannot be told from other code. Here to repeat its runs; preparation asks for
  `tokenizer.accept_loss`.
- `openllama_v2`: the defect mended. What else its authors changed is not published; its settings are those of `llama`.
"""


def train_tokenizer(
    texts: Iterable[str],
    out: str | Path,
    *,
    vocab_size: int,
    preset: str = "llama",
    character_coverage: float | None = None,
    unread: Callable[[], str] = str,
) -> Tokenizer:
    """Trains a tokenizer; the same texts and settings give the same file on every machine.

    Training sees lines (indentation kept), as LLaMA's did: newlines are encoded as the byte `<0x0A>`.

    Args:
        texts: documents; SentencePiece holds them all in memory, so the caller limits them.
        out: where the model is written, atomically.
        vocab_size: number of pieces, at least 259 (256 bytes, `<unk>`, `<s>`, `</s>`) plus the characters covered.
        preset: one of `PRESETS`.
        character_coverage: share of character occurrences that get their own piece, the rest become bytes; None is
            the preset's.
        unread: says what of the text gave no document, for the error where there is none.

    Raises:
        TokenizerError: an unknown preset, the text does not allow this vocabulary size, or there is no text.
    """
    if preset not in PRESETS:
        raise TokenizerError(f"tokenizer.preset={preset!r} is not known. Known: {', '.join(PRESETS)}.")
    settings = dict(PRESETS[preset])
    if character_coverage is not None:
        settings["character_coverage"] = character_coverage
    lines = _Lines(texts)
    try:
        model = train_model(lines, vocab_size=vocab_size, **settings)
    except TokenizerError as error:
        if lines.error is not None:
            raise lines.error from None
        if lines.num_bytes == 0:
            raise TokenizerError(
                "tokenizer.path=null, but there is no training text to train a tokenizer on. Give data.sources with "
                f"a weight above 0 text that is not held out, or set tokenizer.path. {unread()}".rstrip()
            ) from None
        raise TokenizerError(
            f"tokenizer.vocab_size={vocab_size} cannot be trained on {lines.num_bytes} bytes of text: {error} Change "
            "tokenizer.vocab_size, raise tokenizer.training_bytes, or give more text."
        ) from None
    if lines.error is not None:
        raise lines.error
    tokenizer = Tokenizer(model, name=str(out))
    tokenizer.save(out)
    return tokenizer


class _Lines:
    """Lines of documents. Remembers an error of the documents, which SentencePiece would replace by its own."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.num_bytes = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.split("\n"):
                    if line:
                        self.num_bytes += len(line.encode()) + 1
                        yield line
        except Exception as error:  # noqa: BLE001 - raised again by train_tokenizer
            self.error = error
