"""What is tokenised at a time: the plan of units, each of which makes the shards of one number.

A pure function of the files and of `data.shard_bytes`, never of the number of workers: that is why any number of them
writes the same bytes. Reads nothing of the files but their names, sizes and times of change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.data.files import TOKEN_IDS, InputFile, file_system, is_remote
from pretrain.data.records import Piece
from pretrain.durable import replace_file
from pretrain.errors import DataError

PLAN_NAME = "plan.json"

TOKEN_CHUNKS = "token_chunks"
"""What stands for the source of units that hold several."""
_CHANGE_KEYS = ("ETag", "etag", "md5Hash", "contentHash", "mtime", "LastModified", "last_modified", "updated")


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work.

    Attributes:
        number: place in the plan, over all sources.
        source: its source, or `TOKEN_CHUNKS`.
        shard: number of its shards within the source.
        pieces: what it reads, in order.
        stamps: of each piece, what tells a changed file from an unchanged one, see `stamp`.
        key: digest of all that its tokens depend on.
    """

    number: int
    source: str
    shard: int
    pieces: tuple[Piece, ...]
    stamps: tuple[str, ...]
    key: str

    @property
    def stored_bytes(self) -> int:
        """Bytes of its input as stored."""
        return sum(map(piece_bytes, self.pieces))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a worker needs to know; the same on every machine.

    Attributes:
        units: all units, by number.
        text_keys: of each source, the field or column that holds its text.
        aliases: further names of sources in rows of token_chunks, and whose they are.
        max_line_bytes: `data.max_line_bytes`.
        holdout_fraction: `data.holdout_fraction`.
        add_bos: `tokenizer.add_bos`.
        add_eos: `tokenizer.add_eos`.
        row_tokens: tokens of a row of token_chunks.
        sources: names of `data.sources`.
        max_rejected_share: `data.max_rejected_share`.
        max_rejected_bytes_share: `data.rejected_bytes_share`.
        max_damaged_files: `data.max_damaged_files`.
    """

    units: tuple[Unit, ...]
    text_keys: dict[str, str]
    aliases: dict[str, str]
    max_line_bytes: int
    holdout_fraction: float
    add_bos: bool
    add_eos: bool
    row_tokens: int
    sources: tuple[str, ...]
    max_rejected_share: float
    max_rejected_bytes_share: float
    max_damaged_files: int

    def of(self, source: str) -> list[Unit]:
        """Units of a source, in order."""
        return [unit for unit in self.units if unit.source == source]


def make_plan(config: RunConfig, files: Mapping[str, Sequence[InputFile]], *, tokenizer: str) -> Plan:
    """Cuts the files of all sources into units.

    Args:
        config: the run.
        files: files of each source, or of `TOKEN_CHUNKS`.
        tokenizer: fingerprint of the tokenizer.
    """
    import xxhash

    data = config.data
    aliases = {alias: name for name, source in data.sources.items() for alias in source.aliases}
    settings = {
        "max_line_bytes": data.max_line_bytes,
        "holdout_fraction": data.holdout_fraction,
        "add_bos": config.tokenizer.add_bos,
        "add_eos": config.tokenizer.add_eos,
        "row_tokens": config.train.sequence_length + 1 if data.token_chunks else 0,
        "sources": tuple(data.sources),
    }
    # Which other sources there are matters where rows name theirs, and to nothing else.
    shared = {name: value for name, value in settings.items() if name != "sources" or data.token_chunks}
    if data.token_chunks and aliases:
        shared["aliases"] = aliases
    units: list[Unit] = []
    for source, listed in files.items():
        stamps = {file.path: stamp(file) for file in listed}
        keyed = {"text_key": data.text_key_of(source), **shared}
        for shard, pieces in enumerate(cut(listed, shard_bytes=data.shard_bytes)):
            described = [[p.file.name, p.file.size, stamps[p.file.path], p.start, p.stop] for p in pieces]
            content = json.dumps([keyed, tokenizer, source, described], sort_keys=True)
            key = xxhash.xxh3_128_hexdigest(content.encode())
            units.append(
                Unit(len(units), source, shard, tuple(pieces), tuple(stamps[p.file.path] for p in pieces), key)
            )
    return Plan(
        units=tuple(units),
        text_keys={source: data.text_key_of(source) for source in files},
        aliases=aliases,
        max_rejected_share=data.max_rejected_share,
        max_rejected_bytes_share=data.rejected_bytes_share,
        max_damaged_files=data.max_damaged_files,
        **settings,  # type: ignore[arg-type]
    )


def cut(files: Sequence[InputFile], *, shard_bytes: int) -> Iterator[list[Piece]]:
    """Pieces of each unit, in the order of the files, covering every byte or row once.

    Consecutive files share a unit until it has `shard_bytes`. A larger file is cut where it can be: plain lines by
    bytes, a table by rows, into parts of equal size. A file of token_ids is a chunk, and a unit, whatever its size.
    """
    pieces: list[Piece] = []
    size = 0
    for file in files:
        alone = list(_parts(file, shard_bytes=shard_bytes))
        if pieces and (len(alone) > 1 or file.format == TOKEN_IDS or size + file.size > shard_bytes):
            yield pieces
            pieces, size = [], 0
        if len(alone) > 1:
            yield from ([piece] for piece in alone)
        else:
            pieces.append(Piece(file))
            size += file.size
            if size >= shard_bytes or file.format == TOKEN_IDS:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces


def _parts(file: InputFile, *, shard_bytes: int) -> Iterator[Piece]:
    total = file.size if file.is_seekable_lines and file.format != TOKEN_IDS else file.rows
    count = min(-(-file.size // shard_bytes), total or 1)
    if count <= 1 or total is None:
        yield Piece(file)
        return
    bounds = [total * part // count for part in range(count)]
    # The last part is open: it ends where the file does, and says so where that is not where it was.
    for start, stop in zip(bounds, [*bounds[1:], None], strict=True):
        yield Piece(file, start, stop)


def piece_bytes(piece: Piece) -> int:
    """Bytes of a piece as stored; of a part of a table, its share by rows."""
    file = piece.file
    total = file.rows if file.rows is not None else file.size
    length = (total if piece.stop is None else piece.stop) - piece.start
    return length if file.rows is None else file.size * length // max(1, total)


def stamp(file: InputFile) -> str:
    """What differs once a file was written again: time of change in ns, or what an object store says in its place.

    Its content would tell for certain, and would have to be read before the first token is made: a terabyte takes an
    hour at best. An edit that keeps size and time of change is deliberate.
    """
    if not is_remote(file.path):
        try:
            return str(os.stat(file.path).st_mtime_ns)
        except OSError as error:
            raise DataError(
                f"{file.path} cannot be read: {error.strerror}. It was there when files were listed."
            ) from None
    fs, inner = file_system(file.path, key="data")
    try:
        about = fs.info(inner)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error}. It was there when files were listed.") from None
    return str(next((about[key] for key in _CHANGE_KEYS if about.get(key)), ""))


def write_plan(plan: Plan, path: Path) -> None:
    """Writes the plan, atomically."""
    values: dict[str, Any] = {name: getattr(plan, name) for name in Plan.__slots__ if name != "units"}
    values["units"] = [
        {
            "source": unit.source,
            "shard": unit.shard,
            "key": unit.key,
            "pieces": [
                [
                    _absolute(p.file.path),
                    p.file.format,
                    p.file.size,
                    p.file.rows,
                    p.file.is_seekable_lines,
                    p.start,
                    p.stop,
                ]
                for p in unit.pieces
            ],
            "stamps": unit.stamps,
        }
        for unit in plan.units
    ]
    replace_file(path, json.dumps(values))


def read_plan(path: Path) -> Plan:
    """Reads what `write_plan` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    units = tuple(
        Unit(
            number,
            unit["source"],
            unit["shard"],
            tuple(Piece(InputFile(*piece[:5]), *piece[5:]) for piece in unit["pieces"]),
            tuple(unit["stamps"]),
            unit["key"],
        )
        for number, unit in enumerate(values.pop("units"))
    )
    return Plan(units=units, **{**values, "sources": tuple(values["sources"])})


def _absolute(path: str) -> str:
    # Not `abspath`, which takes `link/..` for nothing: it may be another folder.
    return path if is_remote(path) else os.path.join(os.getcwd(), path)
