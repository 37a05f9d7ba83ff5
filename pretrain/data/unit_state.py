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

from pretrain.data.records import DAMAGE, Rejected
from pretrain.data.units import TOKEN_CHUNKS, Plan, Unit
from pretrain.durable import replace_file
from pretrain.errors import DataError

STATE = "state"
_MOST_NAMED = 10
_LINES_TO_JUDGE = 10_000
_FEW_REJECTS = 20
_CLEAR_EXCESS = 10


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
        rejected: unusable lines by reason.
        named: the first of them.
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
    rejected: dict[str, int] = field(default_factory=dict)
    named: list[dict[str, Any]] = field(default_factory=list)
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
        if not item.is_empty and len(self.named) < _MOST_NAMED:
            place = f"byte {item.byte}" if is_relative and item.byte is not None else f"line {item.line}"
            place = place if item.line else "its beginning"
            name = item.file.rstrip("/").rsplit("/", 1)[-1]
            self.named.append({"reason": item.reason, "file": name, "place": place, "detail": item.detail})

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


def check_limits(plan: Plan, source: str, states: Iterable[UnitState], *, is_complete: bool) -> None:
    """Stops where too much of a source is unusable.

    At its end the share is exact. Before, text that is bad here may still be outweighed by good text elsewhere, so it
    must be clear: of 10,000 lines or more, ten times the share (or half way from the share to all of them).

    Args:
        plan: holds the limits.
        source: a source, or `TOKEN_CHUNKS`.
        states: states of its units.
        is_complete: they are all done.

    Raises:
        DataError: names the first lines, counts by reason, and the key that allows them.
    """
    listed = list(states)
    damaged = list(dict.fromkeys(file for state in listed for file in state.damaged))
    lines, unusable = sum(state.lines for state in listed), sum(state.num_unusable for state in listed)
    share = plan.max_rejected_share
    clear = min(_CLEAR_EXCESS * share, (1 + share) / 2)
    is_clear = lines >= _LINES_TO_JUDGE and unusable > max(_FEW_REJECTS, clear * lines)
    if len(damaged) > plan.max_damaged_files:
        key = f"data.max_damaged_files={plan.max_damaged_files}"
        what = f"{len(damaged)} file{'s' if len(damaged) > 1 else ''} cannot be read to the end"
        remedy = "Mend it or list the text without it, or raise data.max_damaged_files to lose what follows."
    elif unusable > (share * lines if is_complete or share == 0 else lines) or is_clear:
        key = f"data.max_rejected_share={share}"
        what = f"{unusable} of {lines} lines{'' if is_complete else ' so far'} are unusable ({unusable / lines:.2%})"
        needed = f"{min(1.0, 1.01 * unusable / lines + 1e-6):.2g}"
        remedy = f"Mend the text, or set data.max_rejected_share above {needed} to leave such lines out."
    else:
        return
    counts = ", ".join(f"{reason} {count}" for reason, count in sum_rejected(listed).items())
    named = [entry for state in listed for entry in state.named]
    if len(damaged) > plan.max_damaged_files:  # what stopped it first
        named.sort(key=lambda entry: entry["reason"] not in DAMAGE)
    first = "\n".join(f"  {entry['file']}, {entry['place']}: {entry['detail']}" for entry in named[:5])
    name = f"data.{source}" if source == TOKEN_CHUNKS else f"data.sources.{source}"
    raise DataError(
        f"{name}: {what}, more than {key} allows. By reason: {counts}.\n{first}\n{remedy} What is done is kept: the "
        "same command goes on from there."
    )


def sum_rejected(states: Iterable[UnitState]) -> dict[str, int]:
    """Rejects by reason, over units."""
    counts: dict[str, int] = {}
    for state in states:
        for reason, count in state.rejected.items():
            counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items()))
