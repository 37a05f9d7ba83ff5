"""Where pieces of state lie in the whole model: rectangles of global tensors, and flat ranges of them.

Every engine keeps its optimizer state as flat ranges of local parameters, and a local parameter is made of
rectangular blocks of global tensors. With these two notions saving needs no communication, and any layout can
read what any other wrote. No files here, and no engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

KINDS = ("param", "exp_avg", "exp_avg_sq")
"""What is stored of each parameter: the fp32 master weight and Adam's two moments. One file per kind and rank."""

WEIGHTS_ONLY = KINDS[:1]


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a global tensor that lies contiguously in a local parameter.

    Attributes:
        key: name of the global tensor.
        global_shape: its shape, at least one axis.
        offset: where the rectangle begins, one index per axis.
        shape: extent of the rectangle.
        local_start: flat element of the local parameter at which the rectangle begins.
        is_owner: False for a copy outside data parallelism (a norm on the second tensor-parallel rank, a tied
            embedding on the last pipeline stage): it is read, never written.
    """

    key: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    local_start: int = 0
    is_owner: bool = True

    @property
    def numel(self) -> int:
        """Elements of the rectangle."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A flat range of a block, with the state of its elements: the unit that is written.

    Attributes:
        block: the rectangle.
        start: flat element of the rectangle at which the range begins.
        tensors: 1-D tensor per kind (`KINDS`), all of the range's length; any float dtype, stored as fp32.
    """

    block: Block
    start: int
    tensors: Mapping[str, Tensor]

    @property
    def numel(self) -> int:
        """Elements of the range."""
        return self.tensors["param"].numel()


Box = tuple[int, tuple[int, ...], tuple[int, ...]]


def boxes(shape: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """Cuts the flat elements [start, end) of a row-major rectangle into smaller rectangles, in order.

    Args:
        shape: extent of the rectangle, at least one axis.
        start: first flat element.
        end: one past the last flat element.

    Yields:
        (flat start, offset, extent) of at most 2 · ndim - 1 rectangles that together are the range.
    """
    if start >= end:
        return
    if len(shape) == 1:
        yield start, (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    first_whole, end_whole = -(-start // row), end // row
    if first_whole > end_whole:  # both ends inside one row
        yield from _within_row(shape, end_whole, start - end_whole * row, end - end_whole * row)
        return
    if start < first_whole * row:
        yield from _within_row(shape, first_whole - 1, start - (first_whole - 1) * row, row)
    if first_whole < end_whole:
        offset = (first_whole,) + (0,) * (len(shape) - 1)
        yield first_whole * row, offset, (end_whole - first_whole, *shape[1:])
    yield from _within_row(shape, end_whole, 0, end - end_whole * row)


def _within_row(shape: Sequence[int], row_index: int, start: int, end: int) -> Iterator[Box]:
    row = math.prod(shape[1:])
    for flat, offset, extent in boxes(shape[1:], start, end):
        yield row_index * row + flat, (row_index, *offset), (1, *extent)


def cut(blocks: Sequence[Block], start: int, tensors: Mapping[str, Tensor]) -> Iterator[Chunk]:
    """Splits a flat range of a local parameter into the chunks this rank writes.

    Args:
        blocks: the blocks the local parameter is made of.
        start: flat element of the local parameter at which the range begins.
        tensors: 1-D tensor per kind, all of the range's length.

    Yields:
        One chunk per owned block that the range meets; tensors are views.
    """
    end = start + tensors["param"].numel()
    for block in blocks:
        first = max(start, block.local_start)
        last = min(end, block.local_start + block.numel)
        if block.is_owner and first < last:
            views = {kind: tensor[first - start : last - start] for kind, tensor in tensors.items()}
            yield Chunk(block, first - block.local_start, views)


def replica_share(sizes: Sequence[int], *, replica: int, num_replicas: int) -> Iterator[tuple[int, int, int]]:
    """The part of replicated parameters that one replica writes: an equal slice of their concatenation.

    Args:
        sizes: elements of each parameter, the same list on every replica.
        replica: index of this replica.
        num_replicas: how many hold the same parameters.

    Yields:
        (index of the parameter, first element, end element) for each parameter the slice meets. Over all replicas
        every element occurs exactly once; shares differ by at most one element.
    """
    total = sum(sizes)
    share_start, share_end = total * replica // num_replicas, total * (replica + 1) // num_replicas
    at = 0
    for index, size in enumerate(sizes):
        first, last = max(share_start, at) - at, min(share_end, at + size) - at
        at += size
        if first < last:
            yield index, first, last
