"""The work of one unit: read its pieces, split, tokenise, write its shards.

Every 32 MB of text its position becomes durable, shards first and the state that points into them last. So a process
that is killed loses little, and one that goes on writes the same bytes: what a unit writes depends on its text alone,
never on where it was stopped or on what other workers did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pretrain.data.documents import read_piece
from pretrain.data.files import digest, open_file
from pretrain.data.limits import check_limits
from pretrain.data.records import Document, Item, Piece, Rejected, TokenRow
from pretrain.data.shard_writer import ENDINGS, Position, ShardWriter, delete_shard, drop_lengths
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unit_state import ShardCounts, UnitState, read_state, state_path, write_state
from pretrain.data.units import TOKEN_CHUNKS, Plan, Unit, stamp
from pretrain.errors import DataError
from pretrain.locks import exclusive

SPLITS = ("train", "validation")
KINDS = (*SPLITS, "heldout")
_DURABLE_BYTES = 32_000_000
_ITEMS_BETWEEN_CHECKS = 1024
_CHUNK_BYTES = 1 << 22


def run_unit(
    writing: Path,
    plan: Plan,
    unit: Unit,
    *,
    tokenizer: Tokenizer,
    on_items: Callable[[], None] = lambda: None,
) -> None:
    """Makes the shards of a unit, or goes on where a process before this one was stopped.

    Waits while another process is at this unit.

    Args:
        writing: folder in the making.
        plan: what is prepared, and how.
        unit: one of its units.
        tokenizer: what tokenises.
        on_items: called every thousand documents or so; may raise to stop.

    Raises:
        DataError: too much of the text is unusable, it changed while it was read, or the folder cannot be written.
    """
    try:
        with exclusive(state_path(writing, unit.number).with_suffix(".lock")):
            state = read_state(writing, unit)
            if not state.is_done:
                _Run(writing, plan, unit, tokenizer=tokenizer, state=state, on_items=on_items).run()
    except OSError as error:  # reading the text has none that are not counted as damage
        raise cannot_write(writing, error) from None


def cannot_write(writing: Path, error: OSError) -> DataError:
    """What to do where a folder in the making cannot be written."""
    return DataError(
        f"{error.filename or writing} cannot be written: {error.strerror or error}. Make room or mend it, or set "
        f"data.prepared_dir elsewhere. What is done in {writing} is kept: the same command goes on from there."
    )


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the share held out by hash; depends on its text alone."""
    return _is_held_out(text.encode(), fraction)


def _is_held_out(content: bytes, fraction: float) -> bool:
    return fraction > 0 and int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < fraction * 2.0**64


class _Run:
    """A unit being worked on."""

    def __init__(
        self,
        writing: Path,
        plan: Plan,
        unit: Unit,
        *,
        tokenizer: Tokenizer,
        state: UnitState,
        on_items: Callable[[], None],
    ) -> None:
        self._writing, self._plan, self._unit, self._tokenizer = writing, plan, unit, tokenizer
        self._state, self._on_items = state, on_items
        self._bos = np.array([tokenizer.bos_id] if plan.add_bos else [], dtype=np.int32)
        self._eos = np.array([tokenizer.eos_id] if plan.add_eos else [], dtype=np.int32)
        self._volatile_bytes = 0
        self._writers: dict[str, ShardWriter] = {}

    def run(self) -> None:
        try:
            try:
                self._open()
            except DataError:  # a crash of the machine took what was thought durable
                self._state = UnitState(self._unit.key)
                self._open()
            for number in range(self._state.piece, len(self._unit.pieces)):
                self._read(self._unit.pieces[number], stamp_then=self._unit.stamps[number])
            self._finish()
        finally:
            for writer in self._writers.values():
                writer.abandon()

    def _open(self) -> None:
        sources = self._plan.sources if self._unit.source == TOKEN_CHUNKS else (self._unit.source,)
        for source in sources:
            (self._writing / source).mkdir(exist_ok=True)
            for kind in KINDS:
                prefix = f"{source}/{self._unit.shard:05d}.{kind}"
                counts = self._state.shards.setdefault(prefix, ShardCounts())
                self._writers[prefix] = ShardWriter(
                    self._writing / prefix,
                    vocab_size=self._tokenizer.vocab_size,
                    position=Position(counts.documents, counts.tokens),
                )

    def _read(self, piece: Piece, *, stamp_then: str) -> None:
        state, plan = self._state, self._plan
        is_whole = True
        items = read_piece(
            piece,
            text_key=plan.text_keys[self._unit.source],
            max_line_bytes=plan.max_line_bytes,
            skip=state.items,
            row_tokens=plan.row_tokens or None,
        )
        for item in items:
            self._take(item, is_relative=piece.start > 0)
            if state.lines % _ITEMS_BETWEEN_CHECKS == 0:
                self._on_items()
                check_limits(plan, self._unit.source, [state], is_complete=False)
            if isinstance(item, Rejected) and item.is_damage:
                check_limits(plan, self._unit.source, [state], is_complete=False)
                is_whole = False
                break
            if self._volatile_bytes >= _DURABLE_BYTES:
                self._make_durable()
        if is_whole and stamp(piece.file) != stamp_then:
            raise DataError(
                f"{piece.file.path} changed while it was read. Leave the text alone while it is prepared, and run the "
                "same command again: of what is done, all that does not depend on this file is kept."
            )
        # Read a second time, for the digest: the system still holds most of it in memory.
        state.digests.append(digest_piece(piece) if is_whole else None)
        state.piece, state.items, state.piece_text_bytes = state.piece + 1, 0, 0

    def _take(self, item: Item, *, is_relative: bool) -> None:
        state, unit = self._state, self._unit
        state.items += 1
        state.lines += 1
        state.bytes_read += item.num_bytes
        if isinstance(item, Document):
            content = item.text.encode()
            kind = item.split or ("heldout" if _is_held_out(content, self._plan.holdout_fraction) else "train")
            prefix = f"{unit.source}/{unit.shard:05d}.{kind}"
            ids = self._tokenizer.encode_array(item.text)
            self._writers[prefix].add(self._bos, ids, self._eos)
            num_tokens = len(self._bos) + len(ids) + len(self._eos)
            state.shards[prefix].add(ShardCounts(1, num_tokens, len(content), len(item.text)))
            num_bytes = len(content)
        elif isinstance(item, TokenRow):
            num_bytes = self._take_row(item)
        else:
            state.reject(item, is_relative=is_relative)
            return
        state.text_bytes += num_bytes
        state.piece_text_bytes += num_bytes
        self._volatile_bytes += num_bytes

    def _take_row(self, row: TokenRow) -> int:
        """Takes a row that is tokenised already, of unknown text. Returns the bytes its ids take."""
        worst, size = int(row.ids.max()), self._tokenizer.vocab_size
        source = self._plan.aliases.get(row.source, row.source)
        if source not in self._plan.sources:
            known = ", ".join(self._plan.sources)
            detail = (
                f"its source {row.source!r} is not one of data.sources: {known}. Name it there, or, where it is one of "
                f"these, as data.sources.NAME.aliases=[{row.source}]."
            )
            self._state.reject(Rejected("unknown_source", detail, row.file, row.line, num_bytes=row.num_bytes))
        elif worst >= size:
            detail = f"token id {worst} is outside the vocabulary of {size} pieces. Set tokenizer.path to its own."
            self._state.reject(Rejected("bad_token_id", detail, row.file, row.line, num_bytes=row.num_bytes))
        else:
            prefix = f"{source}/{self._unit.shard:05d}.train"
            self._writers[prefix].add(row.ids)
            self._state.shards[prefix].add(ShardCounts(1, len(row.ids)))
        return int(row.ids.nbytes)

    def _make_durable(self) -> None:
        for writer in self._writers.values():
            writer.sync()
        write_state(self._writing, self._unit, self._state)
        self._volatile_bytes = 0

    def _finish(self) -> None:
        state = self._state
        self._make_durable()
        for prefix, writer in self._writers.items():
            writer.close()
            if writer.documents:
                state.files[prefix] = {"dtype": writer.dtype.name} | {
                    ending[1:]: describe_file(Path(f"{writer.prefix}{ending}")) for ending in ENDINGS
                }
        state.shards = {prefix: counts for prefix, counts in state.shards.items() if counts.documents}
        state.is_done = True
        write_state(self._writing, self._unit, state)
        for prefix, writer in self._writers.items():
            drop_lengths(writer.prefix)
            if prefix not in state.files:
                delete_shard(writer.prefix)


def describe_file(path: Path) -> dict[str, int | str]:
    """Size and digest of a file."""
    return {"bytes": path.stat().st_size, "xxh3": digest(path)}


def digest_piece(piece: Piece) -> str:
    """xxh3 (128 bits) of what a piece reads: a file or a range of its bytes.

    Rows of a table are no range of bytes: the piece with the first row answers for the file, others with "".
    """
    if piece.file.rows is not None and piece.start > 0:
        return ""
    if piece.file.rows is not None or (piece.start == 0 and piece.stop is None):
        return digest(piece.file.path)
    import xxhash

    state = xxhash.xxh3_128()
    with open_file(piece.file.path) as stream:
        stream.seek(piece.start)
        left = (piece.file.size if piece.stop is None else piece.stop) - piece.start
        while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
            state.update(chunk)
            left -= len(chunk)
    return state.hexdigest()
