"""What a tokenizer loses: found by decoding what it encodes, on built-in cases and on real text, and told by kind.

A guard before a corpus is prepared: a tokenizer that merges spaces or folds newlines says nothing of it, and what it
dropped is noticed after training (OpenLLaMA retrained for newlines, and shipped repeated spaces merged).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pretrain.config.nearest import did_you_mean
from pretrain.config.tokenizer import LOSSES
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ConfigError, TokenizerError

OTHER = "other"
SAMPLE_BYTES = 4_000_000
"""Text of a sample that is encoded and decoded again, at most; the built-in cases do not depend on it."""
_EXCERPT_CHARACTERS = 24

# What SentencePiece's rules named nmt_… drop, and what they take for a space.
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]")
_INVISIBLE = re.compile(r"[\u1680\u200b\u200e\u200f\u2028\u2029\ufeff\ufffd]")
_TAB = re.compile(r"[\t\x0c]")


@dataclass(frozen=True, slots=True)
class Loss:
    """One kind of text that does not come back.

    Attributes:
        name: one of `LOSSES`.
        before: an example of it, from the sample where one of its documents has it, else a built-in case.
        after: what `before` decodes to.
        num_documents: documents of the sample that lose it.
    """

    name: str
    before: str
    after: str
    num_documents: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a tokenizer loses.

    Attributes:
        losses: in the order of `LOSSES`; empty where all text comes back.
        num_documents: size of the sample.
        num_bytes: its UTF-8 bytes.
    """

    losses: tuple[Loss, ...]
    num_documents: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a kind of text is lost: `fold` gives the text without it. `cases` show whether a tokenizer does so."""

    fold: Callable[[str], str]
    cases: tuple[str, ...]


# In the order in which a normaliser works: characters first, then what has become a space.
_KINDS: dict[str, _Kind] = {
    "unicode_forms": _Kind(
        lambda text: unicodedata.normalize("NFKC", text),
        ("ﬁ", "e\u0301", "ＡＢ", "①", "a\u00a0b", "全角\u3000間隔", "…"),
    ),
    "letter_case": _Kind(str.casefold, ("Upper CASE", "Größe")),
    "control_characters": _Kind(lambda text: _CONTROL.sub("", text), ("a\x01b", "a\x1bb", "a\x7fb")),
    "invisible_characters": _Kind(
        lambda text: _INVISIBLE.sub(" ", text), ("a\u200bb", "\ufeffa", "a\u2028b", "a\ufffdb")
    ),
    "space_symbol": _Kind(lambda text: text.replace("\u2581", " "), ("a\u2581b", "\u2581a")),
    "tabs": _Kind(lambda text: _TAB.sub(" ", text), ("a\tb", "\ta", "a\t\tb", "a\x0cb")),
    "carriage_returns": _Kind(lambda text: text.replace("\r", " "), ("a\r\nb", "a\rb")),
    "newlines": _Kind(lambda text: text.replace("\n", " "), ("a\nb", "a\n\nb", "\na", "a\n")),
    "repeated_spaces": _Kind(lambda text: re.sub(" {2,}", " ", text), ("a  b", "a\n    b", "a" + " " * 40 + "b")),
    "leading_spaces": _Kind(lambda text: text.lstrip(" "), (" a", "   a", " ")),
    "trailing_spaces": _Kind(lambda text: text.rstrip(" "), ("a ", "a   ", "\n ")),
}
_OTHER_CASES = (
    "<s> </s> <unk> <0x0A>",
    "🙂👩‍👩‍👧",
    "数据",
    "\u202e",
    "\U0010ffff",
    "\ue000",
    "a\x85b",
    "#hash @at {curly}",
)
assert (*_KINDS, OTHER) == LOSSES, "the configuration knows other names"


def measure(tokenizer: Tokenizer, texts: Iterable[str], *, sample_bytes: int = SAMPLE_BYTES) -> Report:
    """Encodes and decodes built-in cases and a sample, and says by kind what does not come back.

    A kind counts as lost where a built-in case shows it, whether or not the sample has it: a corpus has more than its
    sample. A difference that no kind explains is `other`.

    Args:
        tokenizer: the tokenizer.
        texts: documents; read until `sample_bytes` of them were seen.
        sample_bytes: see `SAMPLE_BYTES`.
    """
    examples: dict[str, str] = {}
    for name, kind in _KINDS.items():
        for case in kind.cases:
            # Lost only if nothing else explains it: a case may hold what another kind loses.
            if name not in examples and _folded(_back(tokenizer, case), _others(name)) != _folded(case, _others(name)):
                examples[name] = case
    for case in _OTHER_CASES:
        if OTHER not in examples and _folded(_back(tokenizer, case), examples) != _folded(case, examples):
            examples[OTHER] = case
    lost = [name for name in _KINDS if name in examples]
    hits: dict[str, int] = {}
    found: dict[str, str] = {}
    num_documents = num_bytes = 0
    for text in texts:
        if num_bytes >= sample_bytes:
            break
        num_documents += 1
        num_bytes += len(text.encode())
        for name, excerpt in _losses_of(tokenizer, text, lost):
            hits[name] = hits.get(name, 0) + 1
            found.setdefault(name, excerpt)
    shown = {**examples, **{n: e for n, e in found.items() if n == OTHER or _back(tokenizer, e) != e}}
    losses = [Loss(n, shown[n], _back(tokenizer, shown[n]), hits.get(n, 0)) for n in LOSSES if n in shown]
    return Report(tuple(losses), num_documents, num_bytes)


def require_lossless(tokenizer: Tokenizer, texts: Iterable[str], accept: Sequence[str] = ()) -> Report:
    """Refuses a tokenizer that loses what the configuration does not accept.

    Args:
        tokenizer: the tokenizer.
        texts: a sample of the text to be prepared.
        accept: `tokenizer.accept_loss`.

    Returns:
        What is lost, all of it accepted.

    Raises:
        ConfigError: an unknown name in `accept`.
        TokenizerError: names each loss that is not accepted, with an example and what to do.
    """
    check_names(accept)
    report = measure(tokenizer, texts)
    lost = [loss for loss in report.losses if loss.name not in accept]
    if lost:
        names = ", ".join(loss.name for loss in report.losses)
        raise TokenizerError(
            f"{tokenizer.name} loses text: what it encodes does not decode to what was there.\n"
            + "\n".join(describe(loss, report) for loss in lost)
            + "\nUse another tokenizer, or, if a model of this one is what you want, accept it: "
            f"tokenizer.accept_loss=[{names}]. Bits per byte then do not compare with other tokenizers'."
        )
    return report


def check_names(accept: Sequence[str]) -> None:
    """Checks `tokenizer.accept_loss`.

    Raises:
        ConfigError: an unknown name.
    """
    unknown = [name for name in accept if name not in LOSSES]
    if unknown:
        raise ConfigError(
            f"tokenizer.accept_loss lists {', '.join(map(repr, unknown))}, which is no kind of loss."
            f"{did_you_mean(unknown[0], LOSSES)} Known: {', '.join(LOSSES)}."
        )


def describe(loss: Loss, report: Report) -> str:
    """A line for people: name, example, and how much of the sample it hits."""
    share = f"{loss.num_documents} of {report.num_documents} documents" if report.num_documents else "no text was read"
    return f"  {loss.name:<21} {loss.before!r} becomes {loss.after!r} ({share})"


def _losses_of(tokenizer: Tokenizer, text: str, lost: Sequence[str]) -> list[tuple[str, str]]:
    """Kinds that a document loses, each with an excerpt."""
    back = _back(tokenizer, text)
    if back == text:
        return []
    found = []
    for name in lost:
        folded = _KINDS[name].fold(text)
        if folded != text:
            found.append((name, _excerpt(text, _first_difference(text, folded))))
    ours, theirs = _folded(text, lost), _folded(back, lost)
    if ours != theirs:
        found.append((OTHER, _excerpt(text, _first_difference(text, back))))
    return found


def _back(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode_array(text))


def _others(name: str) -> list[str]:
    return [other for other in _KINDS if other != name]


def _folded(text: str, names: Iterable[str]) -> str:
    """The text without what the named kinds lose."""
    wanted = set(names)
    for name, kind in _KINDS.items():
        if name in wanted:
            text = kind.fold(text)
    return text


def _first_difference(a: str, b: str) -> int:
    """Index of the first character that differs."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # by halves: documents may be long
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _excerpt(text: str, at: int) -> str:
    """Some characters around a place."""
    return text[max(0, at - _EXCERPT_CHARACTERS) : at + _EXCERPT_CHARACTERS]
