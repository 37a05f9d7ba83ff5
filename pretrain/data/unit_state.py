"""How far a unit is: a small file beside its shards, replaced as a whole each time a position has been made durable.

It alone says what is done. A unit whose key is not that of the plan, because text, settings or tokenizer are others, is
as good as not begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.records import Rejected
from pretrain.data.units import Unit
from pretrain.durable import replace_file

STATE = "state"
_MOST_NAMED = 10


@dataclass(slots=True)
class ShardCounts:
    """What a shard, a split or a source holds.

    Attributes:
        documents: documents with text.
        tokens: tokens, BOS and EOS included.
        bytes: UTF-8 bytes of text.
        characters: Unicode code points of text.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    characters: int = 0

    def add(self, other: ShardCounts) -> None:
        """Adds another shard's counts."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.bytes += other.bytes
        self.characters += other.characters


@dataclass(slots=True)
class UnitState:
    """Everything that must be known to go on with a unit, and in the end to describe it.

    Attributes:
        key: of the unit it belongs to.
        piece: piece that is being read.
        items: documents and rejects of that piece that are dealt with.
        piece_text_bytes: bytes of text among them.
        lines: documents and rejects of all pieces so far, empty ones included.
        text_bytes: bytes of text so far.
        bytes_read: bytes of these lines, documents or rows as they stand in their files, unpacked.
        rejected_bytes: of these, bytes of unusable lines; what a damaged file would have held is not known.
        rejected: unusable lines by reason.
        named: the first of them.
        largest: the largest of them.
        damaged: files that could not be read to the end.
        digests: xxh3 of each piece read, None of one that broke off.
        shards: counts by prefix below the folder.
        files: of finished shards, dtype, bytes and digests by prefix.
        is_done: all shards are closed.
    """

    key: str
    piece: int = 0
    items: int = 0
    piece_text_bytes: int = 0
    lines: int = 0
    text_bytes: int = 0
    bytes_read: int = 0
    rejected_bytes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    named: list[dict[str, Any]] = field(default_factory=list)
    largest: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)
    digests: list[str | None] = field(default_factory=list)
    shards: dict[str, ShardCounts] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_done: bool = False

    def reject(self, item: Rejected, *, is_relative: bool = False) -> None:
        """Counts and names what gave no document.

        Args:
            item: it.
            is_relative: its line is counted from the middle of a file.
        """
        self.rejected[item.reason] = self.rejected.get(item.reason, 0) + 1
        if item.is_damage:
            self.damaged.append(item.file)
        if item.is_empty:
            return
        self.rejected_bytes += item.num_bytes
        is_largest = item.num_bytes > (self.largest["bytes"] if self.largest else 0)
        if len(self.named) < _MOST_NAMED or is_largest:
            place = f"byte {item.byte}" if is_relative and item.byte is not None else f"line {item.line}"
            place = place if item.line else "its beginning"
            name = item.file.rstrip("/").rsplit("/", 1)[-1]
            entry = {
                "reason": item.reason, "file": name, "place": place, "bytes": item.num_bytes, "detail": item.detail
            }  # fmt: skip
            self.named += [entry] if len(self.named) < _MOST_NAMED else []
            self.largest = entry if is_largest else self.largest

    @property
    def num_unusable(self) -> int:
        """Lines that count against data.max_rejected_share."""
        return sum(self.rejected.values()) - self.rejected.get("empty", 0) - len(self.damaged)


def state_path(writing: Path, number: int) -> Path:
    """Where the state of a unit is."""
    return writing / STATE / f"{number:05d}.json"


def read_state(writing: Path, unit: Unit) -> UnitState:
    """The state of a unit; that of one not begun where there is none, or one of another unit."""
    try:
        values = json.loads(state_path(writing, unit.number).read_text(encoding="utf-8"))
        if values["key"] != unit.key:
            return UnitState(unit.key)
        shards = {prefix: ShardCounts(**counts) for prefix, counts in values.pop("shards").items()}
        return UnitState(**values, shards=shards)
    except (OSError, ValueError, KeyError, TypeError):
        return UnitState(unit.key)


def write_state(writing: Path, unit: Unit, state: UnitState) -> None:
    """Replaces the state of a unit, durably: a kill or a crash leaves this one or the one before."""
    path = state_path(writing, unit.number)
    replace_file(path, json.dumps(asdict(state), indent=1) + "\n")


def sum_rejected(states: Iterable[UnitState]) -> dict[str, int]:
    """Rejects by reason, over units."""
    counts: dict[str, int] = {}
    for state in states:
        for reason, count in state.rejected.items():
            counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items()))
