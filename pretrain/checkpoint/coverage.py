"""Whether pieces written by many ranks are together every tensor, each element exactly once.

A gap would resume from garbage, an overlap would hide that two ranks disagree about who owns what. The check
needs positions only, so it runs before a manifest is written and again whenever one is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Piece(NamedTuple):
    """A flat range [start, start + numel) of the rectangle (offset, shape) of the tensor `key`."""

    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    numel: int


Rectangle = tuple[tuple[int, ...], tuple[int, ...]]


def coverage_problem(tensors: Mapping[str, tuple[int, ...]], pieces: Iterable[Piece]) -> str | None:
    """Checks that pieces cover tensors exactly once.

    Args:
        tensors: global shape by name.
        pieces: the ranges.

    Returns:
        One sentence that names the first tensor with a gap, an overlap or a piece outside it; None if all is well.
    """
    ranges: dict[str, dict[Rectangle, list[tuple[int, int]]]] = {key: {} for key in tensors}
    for piece in pieces:
        if piece.key not in ranges:
            return f"a piece belongs to {piece.key!r}, which is not among the tensors"
        rectangle = (piece.offset, piece.shape)
        ranges[piece.key].setdefault(rectangle, []).append((piece.start, piece.numel))
    for key, rectangles in ranges.items():
        problem = _tensor_problem(tensors[key], rectangles)
        if problem is not None:
            return f"{key}: {problem}"
    return None


def _tensor_problem(shape: tuple[int, ...], rectangles: dict[Rectangle, list[tuple[int, int]]]) -> str | None:
    for (offset, extent), pieces in rectangles.items():
        if not len(offset) == len(extent) == len(shape) or any(
            begin < 0 or size < 0 or begin + size > limit
            for begin, size, limit in zip(offset, extent, shape, strict=True)
        ):
            return f"block at {offset} of extent {extent} is not inside shape {shape}"
        problem = _range_problem(math.prod(extent), sorted(pieces))
        if problem is not None:
            return f"block at {offset}: {problem}"
    # Blocks of one save are cells of one grid: few per tensor (tensor-parallel ranks), so every pair is compared.
    listed = list(rectangles)
    for index, first in enumerate(listed):
        for second in listed[index + 1 :]:
            if _overlap(first, second):
                return f"blocks at {first[0]} and {second[0]} overlap"
    have, want = sum(math.prod(extent) for _, extent in listed), math.prod(shape)
    return None if have == want else f"{want - have} of {want} elements are missing"


def _range_problem(numel: int, pieces: list[tuple[int, int]]) -> str | None:
    at = 0
    for start, size in pieces:
        if size < 0 or start != at:
            return f"elements {min(at, start)} to {max(at, start)} are {'missing' if start > at else 'written twice'}"
        at += size
    return None if at == numel else f"{at} of {numel} elements were written"


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return all(
        a < b + b_size and b < a + a_size for a, a_size, b, b_size in zip(first[0], first[1], *second, strict=True)
    )
