"""What reading yields: documents, rows of tokens, and what had to be passed over, each with the place it was read at.

Plain values, small enough to send between processes. Also says when a text is fit to be a document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pretrain.data.files import InputFile

SPLITS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one file, read by itself.

    Attributes:
        file: the file.
        start: first byte of plain lines, or first row of a table. A piece of lines holds those that begin in
            [start, stop), each to its end, so pieces that meet share no line and miss none. Compressed and text
            files are read whole.
        stop: end of the range; None is the end of the file.
    """

    file: InputFile
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where it was read.

    Attributes:
        text: its text, exactly; not empty.
        split: `meta.split`, if given.
        file: the file it is in.
        line: its line there, or row of a table, from 1. In a piece of lines that does not begin at byte 0 it counts
            from the piece's first line: what stands before is not read.
        num_bytes: of its line or text file, unpacked; of a row of a table, of its text.
    """

    text: str
    split: str | None
    file: str
    line: int
    num_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A sample that is tokenised already, as LLM360/AmberDatasets holds them.

    Attributes:
        ids: its tokens, int32 [num_tokens].
        source: the source it names.
        file: the file it is in.
        line: as of `Document`.
        num_bytes: as of `Document`.
    """

    ids: np.ndarray
    source: str
    file: str
    line: int
    num_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line or row that gives no document.

    Attributes:
        reason: short and stable, to count by; see `REASONS`.
        detail: what is wrong with it and what to do, a sentence.
        file: the file it is in.
        line: as of `Document`; of damage, the last line or row that could be read.
        byte: where the line begins in its file; None where that cannot be known.
        is_empty: a document without text: nothing is lost with it.
        is_damage: what follows in the piece cannot be read either.
        num_bytes: as of `Document`; 0 of damage, where nobody knows.
    """

    reason: str
    detail: str
    file: str
    line: int
    byte: int | None = None
    is_empty: bool = False
    is_damage: bool = False
    num_bytes: int = field(default=0, compare=False)


Item = Document | TokenRow | Rejected

REASONS = {
    "invalid_utf8": "bytes that are not UTF-8",
    "invalid_json": "not JSON, or not an object",
    "missing_text": "no field or column with the text",
    "not_text": "the text is not a string",
    "nul_byte": "holds a NUL byte",
    "lone_surrogate": "half of a surrogate pair, which is not valid Unicode",
    "too_long": "longer than data.max_line_bytes",
    "empty": "no text",
    "bad_split": "meta.split is neither 'train' nor 'validation'",
    "wrong_length": "token_ids of another length than a sample has",
    "bad_token_id": "token_ids that are not token ids",
    "unknown_source": "a source that data.sources does not name",
    "damaged": "torn or corrupt: the rest of the file is lost",
    "vanished": "gone or unreadable: the rest of the file is lost",
    "wrong_kind": "not packed as its name says, or not text in UTF-8: the file is lost",
}
"""Every reason, with its meaning for people."""
DAMAGE = ("damaged", "vanished", "wrong_kind")
"""Reasons that hold for a file and all that follows in it, not for a line."""


def spelt_out(counts: Mapping[str, int]) -> str:
    """Counts by reason for people: `2 nul_byte (holds a NUL byte), 1 empty (no text)`."""
    known = {reason: f"{reason} ({meaning})" for reason, meaning in REASONS.items()}
    return ", ".join(f"{count:,} {known.get(reason, reason)}" for reason, count in counts.items())


class Unfit(Exception):
    """Why a line or row gives no document; becomes a `Rejected` where its place is known."""

    def __init__(self, reason: str, detail: str, *, is_empty: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.is_empty = is_empty

    def at(self, file: str, line: int, byte: int | None = None, *, num_bytes: int) -> Rejected:
        """What is yielded in the document's place."""
        return Rejected(self.reason, self.detail, file, line, byte, self.is_empty, num_bytes=num_bytes)


def require_text(text: Any, *, text_key: str) -> str:
    """The text of a document.

    Raises:
        Unfit: not a string, empty, with a NUL, or not valid Unicode.
    """
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        raise Unfit("not_text", f"field {text_key!r} holds {found}, not a string.")
    if not text:
        raise Unfit("empty", f"field {text_key!r} is empty.", is_empty=True)
    if "\0" in text:
        raise Unfit(
            "nul_byte",
            f"field {text_key!r} holds a NUL at character {text.index(chr(0))}: no text does. Drop or repair it.",
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Unfit(
                "lone_surrogate",
                f"field {text_key!r} holds a lone surrogate at character {error.start}, which is not valid Unicode. "
                "Repair or drop the document.",
            ) from None
    return text


def require_split(meta: Any) -> str | None:
    """`meta.split`, or None where there is none.

    Raises:
        Unfit: another mark than those of `SPLITS`.
    """
    split = meta.get("split") if isinstance(meta, dict) else None
    if split is not None and split not in SPLITS:
        raise Unfit("bad_split", f"meta.split={split!r}; allowed are 'train', 'validation' or no mark.")
    return split


def too_long(num_bytes: int, *, max_line_bytes: int, what: str = "line") -> Unfit:
    """A line or document that is not read."""
    return Unfit(
        "too_long",
        f"a {what} of {num_bytes:,} bytes, longer than data.max_line_bytes={max_line_bytes:,}. Split the document, or "
        "raise data.max_line_bytes if it is one: each process holds a line in memory.",
    )


def not_utf8(data: bytes, error: UnicodeDecodeError) -> Unfit:
    """Bytes that are not UTF-8."""
    return Unfit(
        "invalid_utf8",
        f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} of it. Convert the file to UTF-8.",
    )
