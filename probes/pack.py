"""The trie cut into blocks and packed into rows, each scored in one forward pass.

A trie laid out depth first needs three numbers a token (token, position, end), and its whole attention mask is
`key <= query < end[key]`. A row is a shared prefix (few-shot examples, say) and blocks of equal length that see
the prefix but not each other; a block holds whole pieces of the trie. See `pretrain.engine.base.PackedRow`.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.engine.base import PackedRow, PackedRows
from probes.request import Request
from probes.trie import Node, Trie, build_trie, walk

_BLOCK_LENGTHS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 512)
_MIN_PREFIX = 64
"""Shortest beginning worth a row prefix of its own."""
_CHEAP_REPEAT = 8
"""A beginning this short is repeated in every block rather than keeping its pieces together."""
_LINEAR_COST_IN_KEYS = 3072
"""A token's linear layers cost as much as attending to so many keys: 12 · hidden size, at hidden size 256, where on
two CPU cores blocks of 160 to 256 tokens were equally fast and 128 (the choice at half of it) 4 % slower. Larger models
weigh padding more still; the choice is not sensitive to it."""


@dataclass(slots=True)
class Packing:
    """Rows, and where each request finds its answers.

    Attributes:
        rows: what the scorer gets.
        span_pairs: int64 [total continuation tokens], pair ids of all requests one after the other.
        span_offsets_R1: int64 [requests + 1], request r owns `span_pairs[offsets[r]:offsets[r + 1]]`.
        stats: requests, rows, block_length, naive_tokens (each request alone), trie_tokens, tokens (rows with
            padding), padding (share), cut_requests.
    """

    rows: PackedRows
    span_pairs: np.ndarray
    span_offsets_R1: np.ndarray
    stats: dict[str, float]


@dataclass(slots=True)
class Piece:
    """What a block holds whole: a subtree, after the ancestors between it and the row prefix, which it repeats."""

    ancestors: tuple[Node, ...]
    subtree: Node
    length: int


@dataclass(slots=True)
class Group:
    """Pieces that share a row prefix, possibly an empty one."""

    prefix: tuple[Node, ...]
    pieces: list[Piece]

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix."""
        return self.prefix[-1].end if self.prefix else 0


@dataclass(slots=True)
class RowLayout:
    """A row before its arrays exist."""

    prefix: tuple[Node, ...]
    block_length: int
    blocks: list[list[Piece]]


def pack(
    requests: Sequence[Request],
    *,
    max_length: int,
    tokens_per_row: int = 4096,
    multiple: int = 16,
    block_length: int | None = None,
    min_prefix: int = _MIN_PREFIX,
) -> Packing:
    """Packs requests into rows; deterministic.

    Args:
        requests: what to score.
        max_length: longest model input in tokens; longer ones lose tokens on the left, as in lm-eval's HFLM.
        tokens_per_row: budget of a row in tokens; only a single block longer than it exceeds it.
        multiple: row and block lengths are multiples of it, which GPUs are fast at; what a layout
            needs besides is the engine's to add.
        block_length: tokens of a block; None chooses by a cost model.
        min_prefix: shortest shared beginning, in tokens, that becomes a row prefix.
    """
    trie = build_trie(requests, max_length=max_length)
    lengths = (block_length,) if block_length else _BLOCK_LENGTHS
    candidates = [
        _lay_out(trie.root, _up(length, multiple), tokens_per_row, multiple, min_prefix) for length in lengths
    ]
    costs = [_cost(layout) for layout in candidates]
    best = int(np.argmin(costs))
    offsets = np.zeros(len(requests) + 1, np.int64)
    offsets[1:] = np.cumsum([len(request.continuation) for request in requests])
    writer = _RowWriter(offsets, multiple)
    rows = [writer.write(layout) for layout in candidates[best]]
    rows.sort(key=lambda row: -len(row.tokens_S))
    packed = PackedRows(rows, writer.num_pairs, digest_rows(rows))
    stats = _stats(trie, packed, num_requests=len(requests), block_length=lengths[best])
    return Packing(packed, writer.span_pairs, offsets, stats)


def digest_rows(rows: Sequence[PackedRow]) -> str:
    """Hash over every number of every row, hexadecimal."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([row.prefix, row.num_blocks, row.block_length, row.num_real_tokens]).tobytes())
        for array in (row.tokens_S, row.positions_S, row.ends_S, row.wanted_W):
            digest.update(np.ascontiguousarray(array).tobytes())
        for array in (row.pair_wanted_P, row.pair_target_P, row.pair_id_P):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _stats(trie: Trie, packed: PackedRows, *, num_requests: int, block_length: int) -> dict[str, float]:
    tokens = sum(len(row.tokens_S) for row in packed.rows)
    real = sum(row.num_real_tokens for row in packed.rows)
    return {
        "requests": num_requests,
        "rows": len(packed.rows),
        "block_length": block_length,
        "naive_tokens": trie.naive_tokens,
        "trie_tokens": trie.root.size,
        "tokens": tokens,
        "padding": round(1 - real / tokens, 4) if tokens else 0.0,
        "cut_requests": trie.num_cut,
    }


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _cut(root: Node, block_length: int, min_prefix: int) -> list[Group]:
    """Cuts the trie into pieces: the group without a prefix first, then one for each long shared beginning."""
    loose = Group((), [])
    groups = [loose]
    stack: list[tuple[Node, tuple[Node, ...], Group]] = [(child, (), loose) for child in reversed(root.children)]
    while stack:
        node, ancestors, group = stack.pop()
        base = group.prefix_length
        whole = node.depth - base + node.size
        below = node.size - len(node.tokens)
        path = (*ancestors, node)
        cheap_to_split = bool(node.children) and node.end - base <= _CHEAP_REPEAT
        worth_a_prefix = node.end >= min_prefix and len(node.children) > 1 and below > node.end // 4
        # Repeating the beginning for each child may cost more than a longer block.
        dear_to_split = (node.end - base) * (len(node.children) - 1) > below
        if not node.children or (whole <= block_length and not cheap_to_split):
            group.pieces.append(Piece(ancestors, node, whole))
        elif group is loose and whole > block_length and worth_a_prefix:
            shared = Group(path, [])
            groups.append(shared)
            stack.extend((child, (), shared) for child in reversed(node.children))
        elif dear_to_split:
            group.pieces.append(Piece(ancestors, node, whole))
        else:
            stack.extend((child, path, group) for child in reversed(node.children))
    return [group for group in groups if group.pieces]


def _lay_out(root: Node, block_length: int, tokens_per_row: int, multiple: int, min_prefix: int) -> list[RowLayout]:
    layouts: list[RowLayout] = []
    for group in _cut(root, block_length, min_prefix):
        for length, pieces in _by_length(group.pieces, block_length, multiple):
            bins = _best_fit([piece.length for piece in pieces], length)
            per_row = max(1, (tokens_per_row - group.prefix_length) // length)
            for first in range(0, len(bins), per_row):
                blocks = [[pieces[i] for i in members] for members in bins[first : first + per_row]]
                layouts.append(RowLayout(group.prefix, length, blocks))
    return layouts


def _by_length(pieces: Sequence[Piece], block_length: int, multiple: int) -> list[tuple[int, list[Piece]]]:
    """Pieces by the block length they get: the common one, and steps of a quarter for longer outliers."""
    classes: dict[int, list[Piece]] = {}
    for piece in pieces:
        length = block_length
        while length < piece.length:
            length = _up(length * 5 // 4 + 1, multiple)
        classes.setdefault(length, []).append(piece)
    found = []
    for length, members in sorted(classes.items()):
        longest = _up(max(piece.length for piece in members), multiple)
        found.append((length if length == block_length else longest, members))
    return found


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing; indices into `lengths` for each bin."""
    rooms: list[tuple[int, int]] = []
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(rooms, (lengths[index], -1))
        if place == len(rooms):
            bins.append([])
            room, target = capacity, len(bins) - 1
        else:
            room, target = rooms.pop(place)
        bins[target].append(index)
        bisect.insort(rooms, (room - lengths[index], target))
    return bins


def _cost(layouts: Sequence[RowLayout]) -> float:
    total = 0.0
    for layout in layouts:
        prefix = layout.prefix[-1].end if layout.prefix else 0
        tokens = len(layout.blocks) * layout.block_length
        total += prefix * (_LINEAR_COST_IN_KEYS + prefix / 2)
        total += tokens * (_LINEAR_COST_IN_KEYS + prefix + layout.block_length)
    return total


class _RowWriter:
    """Writes row arrays and hands out pair ids. What is wanted of a node is asked at its first copy alone."""

    def __init__(self, span_offsets_R1: np.ndarray, multiple: int) -> None:
        self.num_pairs = 0
        self.span_pairs = np.full(int(span_offsets_R1[-1]), -1, np.int64)
        self._offsets = span_offsets_R1
        self._multiple = multiple
        self._asked: set[int] = set()  # ids of nodes; the trie outlives the writer

    def write(self, layout: RowLayout) -> PackedRow:
        prefix = layout.prefix[-1].end if layout.prefix else 0
        end = prefix + layout.block_length * len(layout.blocks)
        length = _up(end, self._multiple)
        self._tokens, self._positions, self._ends = (np.zeros(length, np.int32) for _ in range(3))
        self._wanted: list[tuple[int, Node, int]] = []  # (index in the row, node, offset in its run)
        for node in layout.prefix:
            self._run(node, node.depth)
        self._ends[:prefix] = end
        num_real = prefix
        for number, pieces in enumerate(layout.blocks):
            start = prefix + number * layout.block_length
            for piece in pieces:
                self._piece(piece, start)
                start += piece.length
                num_real += piece.length
        wanted_W, *pairs = self._pairs()
        return PackedRow(
            prefix, len(layout.blocks), layout.block_length, self._tokens, self._positions, self._ends, num_real,
            wanted_W, *pairs,
        )  # fmt: skip

    def _run(self, node: Node, start: int) -> int:
        end = start + len(node.tokens)
        self._tokens[start:end] = node.tokens
        self._positions[start:end] = np.arange(node.depth, node.end)
        if id(node) not in self._asked:
            self._asked.add(id(node))
            self._wanted.extend((start + offset, node, offset) for offset in node.wanted)
        return end

    def _piece(self, piece: Piece, start: int) -> None:
        index = start
        for node in piece.ancestors:
            index = self._run(node, index)
        self._ends[start:index] = start + piece.length
        for node in walk([piece.subtree]):
            self._ends[index : index + len(node.tokens)] = index + node.size
            index = self._run(node, index)

    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        wanted: list[int] = []
        places: list[int] = []
        targets: list[int] = []
        first_id = self.num_pairs
        for index, node, offset in sorted(self._wanted, key=lambda want: want[0]):
            for target, waiting in node.wanted[offset].items():
                places.append(len(wanted))
                targets.append(target)
                for request, j in waiting:
                    self.span_pairs[self._offsets[request] + j] = self.num_pairs
                self.num_pairs += 1
            wanted.append(index)
        ids = np.arange(first_id, self.num_pairs, dtype=np.int64)
        return np.array(wanted, np.int64), np.array(places, np.int64), np.array(targets, np.int64), ids
