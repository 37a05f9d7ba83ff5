"""Requests merged into a trie of tokens, so that every shared beginning is computed once.

A radix trie: a node is a run of tokens. Built from sorted inputs with one pass; nothing here recurses, since
prompts may nest as deep as they are long. How the trie is laid out in rows is for `probes.pack`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from probes.request import Request

Waiting = dict[int, list[tuple[int, int]]]
"""Target token id → the (request, index in its continuation) that wait for its log-probability."""


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens below its parent's run.

    Attributes:
        tokens: the run, at least one token (none in the root).
        depth: position of the run's first token in its prompts.
        children: continuations, in sorted order.
        size: tokens of the run and everything below.
        wanted: offset in the run → targets whose log-probability after that token is wanted.
    """

    tokens: tuple[int, ...]
    depth: int
    children: list[Node] = field(default_factory=list)
    size: int = 0
    wanted: dict[int, Waiting] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Position one past the run's last token."""
        return self.depth + len(self.tokens)

    def split(self, offset: int) -> None:
        """Moves everything from `offset` of the run on into a new only child."""
        lower = Node(self.tokens[offset:], self.depth + offset, self.children)
        lower.wanted = {o - offset: waiting for o, waiting in self.wanted.items() if o >= offset}
        self.wanted = {o: waiting for o, waiting in self.wanted.items() if o < offset}
        self.tokens = self.tokens[:offset]
        self.children = [lower]


@dataclass(slots=True)
class Trie:
    """The trie and what merging saved.

    Attributes:
        root: a node without tokens.
        naive_tokens: input tokens of all requests, each scored alone.
        num_cut: requests whose context was cut from the left to fit.
    """

    root: Node
    naive_tokens: int
    num_cut: int


def build_trie(requests: Sequence[Request], *, max_length: int) -> Trie:
    """Merges the model inputs of all requests.

    The input of a request is `(context + continuation)[-(max_length + 1):][:-1]`: cut from the left exactly
    as lm-eval's HFLM does, without the last token, which is only predicted.

    Args:
        requests: continuations of 1 to `max_length` tokens after contexts of at least one.
        max_length: longest input in tokens.
    """
    inputs: dict[tuple[int, ...], list[tuple[int, int, int, int]]] = {}
    naive_tokens = num_cut = 0
    for number, request in enumerate(requests):
        whole = request.context + request.continuation
        num_cut += len(whole) > max_length + 1
        tokens = whole[-(max_length + 1) :][:-1]
        naive_tokens += len(tokens)
        first = len(tokens) - len(request.continuation)
        waiting = inputs.setdefault(tokens, [])
        waiting.extend((first + j, target, number, j) for j, target in enumerate(request.continuation))
    root = Node((), 0)
    path = [root]
    before: tuple[int, ...] = ()
    for tokens, waiting in sorted(inputs.items()):
        _extend(path, tokens, num_shared=_num_shared(before, tokens))
        before = tokens
        for position, target, number, j in waiting:
            node = next(node for node in reversed(path) if node.depth <= position and node.tokens)
            node.wanted.setdefault(position - node.depth, {}).setdefault(target, []).append((number, j))
    _count(root)
    return Trie(root, naive_tokens, num_cut)


def _extend(path: list[Node], tokens: tuple[int, ...], *, num_shared: int) -> None:
    """Turns `path`, the nodes of the input before in sorted order, into the nodes of this one."""
    while len(path) > 1 and path[-1].depth >= num_shared:
        path.pop()
    if path[-1].end > num_shared:
        path[-1].split(num_shared - path[-1].depth)
    node = Node(tokens[num_shared:], num_shared)  # never empty: sorted inputs do not begin the one before them
    path[-1].children.append(node)
    path.append(node)


def _num_shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])


def _count(root: Node) -> None:
    order = list(walk([root]))
    for node in reversed(order):
        node.size = len(node.tokens) + sum(child.size for child in node.children)


def walk(nodes: Iterable[Node]) -> Iterable[Node]:
    """Nodes and everything below them, depth first, children in order."""
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))
