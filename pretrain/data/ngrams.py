"""Which evaluation items share n-grams of words with a document: an index of items, and a fast scan of text.

datatrove's decontamination (`datatrove.pipeline.decont`) is the model, with what it calls overlap. It does not serve as
it is: its index needs lighteval and knows tasks, not items; its filter stops at a document's first n-gram; its word
tokenizer for English needs spaCy, of which, punctuation removed, splitting at spaces is what is left; its
`simplify_text` leaves a Chinese sentence one word and takes all numbers for one, which makes different problems of
arithmetic the same. Words here are what it makes of English otherwise; the tests hold them against it.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

WHOLE_WORDS = 10
"""A text shorter than an n-gram counts as a whole if it has so many words. GPT-3 took 8; of what 8 and 9 found in PIQA,
half were phrases such as "use an old toothbrush and soap and water"."""
MOST_ITEMS = 10
"""An n-gram that more items than this share is a phrase of the task, not of an item."""

# Written without spaces between words: each character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)) + bytes(
    32 for _ in range(128)
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_CACHED_WORDS = 1_000_000
# What may stand between a question and its answer: nothing, "A:", "Answer:".
_MARKS: tuple[list[bytes], ...] = ([], [b"a"], [b"answer"])
_ITEMS_AT_ONCE = 500
_BITS_PER_GRAM = 64
_BIT = (1 << np.arange(8)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation item.

    Attributes:
        task: its task.
        id: its name within the task.
        texts: its texts, each by itself: passage, question, answers.
    """

    task: str
    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Words that a document and an item share.

    Attributes:
        item: position of the item in the index.
        num_words: length of the longest run of shared words.
        excerpt: the run, as normalised words.
    """

    item: int
    num_words: int
    excerpt: str


def words_of(text: str) -> list[bytes]:
    """Words of a text as they are compared: lower case, without accents and punctuation, in UTF-8."""
    if text.isascii():
        return text.encode().translate(_ASCII).split()
    words: list[bytes] = []
    for line in text.split("\n"):
        if line.isascii():
            words += line.encode().translate(_ASCII).split()
        else:
            plain = unicodedata.normalize("NFKD", line.lower())
            bare = "".join(c for c in plain if not unicodedata.combining(c))
            words += [word.encode() for word in _WORDS.findall(unicodedata.normalize("NFC", bare))]
    return words


class NgramIndex:
    """N-grams of items, by hash: some 30 bytes for each.

    Attributes:
        items: the items, in order.
        num_words: n.
        too_short: positions of items of which no text, alone or with another, has `WHOLE_WORDS` words.
    """

    def __init__(self, items: Sequence[Item], *, num_words: int) -> None:
        """Builds the index.

        Args:
            items: evaluation items.
            num_words: words of an n-gram.
        """
        self.items = list(items)
        self.num_words = num_words
        self._least = min(WHOLE_WORDS, num_words)
        self._cache = _WordHashes()
        self._marks = [self._cache.of(mark) for mark in _MARKS]
        self.too_short: set[int] = set()
        blocks = [self._grams(first) for first in range(0, max(1, len(self.items)), _ITEMS_AT_ONCE)]
        anchors, wholes, owners, lengths = (np.concatenate(part) for part in zip(*blocks, strict=True))
        self._lengths = np.unique(lengths).tolist()
        self._wholes, self._owners, kept = _without_phrases(wholes, owners)
        self._filter = _Filter(anchors[kept])

    def overlaps(self, text: str) -> list[Overlap]:
        """Items that share an n-gram with a text, in the order of items."""
        words = words_of(text)
        if len(words) < self._least or not len(self._wholes):
            return []
        hashes = self._cache.of(words)
        candidates = self._filter.candidates(_hashes_at(hashes, None, self._least))
        if not len(candidates):
            return []
        spans: dict[int, list[tuple[int, int]]] = {}
        for length in self._lengths:
            starts = candidates[candidates + length <= len(words)]
            wholes = _hashes_at(hashes, starts, length)
            low = np.searchsorted(self._wholes, wholes, side="left")
            high = np.searchsorted(self._wholes, wholes, side="right")
            for hit in np.flatnonzero(high > low):
                for owner in set(self._owners[low[hit] : high[hit]].tolist()):
                    spans.setdefault(owner, []).append((int(starts[hit]), int(starts[hit]) + length))
        return [_overlap(owner, sorted(spans[owner]), words) for owner in sorted(spans)]

    def _grams(self, first: int) -> tuple[np.ndarray, ...]:
        """N-grams of some items from `first` on: hash of their first words, hash of all, item, length."""
        segments: list[np.ndarray] = []
        owners: list[int] = []
        for number, item in enumerate(self.items[first : first + _ITEMS_AT_ONCE], start=first):
            mine = [hashes for hashes in self._segments(item) if len(hashes) >= self._least]
            segments += mine
            owners += [number] * len(mine)
            if not mine:
                self.too_short.add(number)
        sizes = np.array([len(segment) for segment in segments], dtype=np.int64)
        stops = np.cumsum(sizes)
        words = np.concatenate([np.empty(0, np.uint64), *segments])
        found: list[tuple[np.ndarray, ...]] = [(np.empty(0, np.uint64),) * 2 + (np.empty(0, np.int32),) * 2]
        for length in range(self._least, self.num_words + 1):
            # Shorter texts are one gram each, their whole; longer ones have one at each of their words.
            of_length = np.flatnonzero(sizes >= length if length == self.num_words else sizes == length)
            counts = sizes[of_length] - length + 1
            begins = np.repeat(stops[of_length] - sizes[of_length] - np.cumsum(counts) + counts, counts)
            starts = begins + np.arange(len(begins))
            starts = starts[_is_varied(words, starts, length)]
            owner = np.array(owners, dtype=np.int32)[np.searchsorted(stops, starts, side="right")]
            grams = (_hashes_at(words, starts, size) for size in (self._least, length))
            found.append((*grams, owner, np.full(len(starts), length, dtype=np.int32)))
        return tuple(np.concatenate(part) for part in zip(*found, strict=True))

    def _segments(self, item: Item) -> Iterator[np.ndarray]:
        """Word hashes of each text, and of the seam of each two, which may follow each other in a document."""
        texts = [hashes for text in dict.fromkeys(item.texts) if len(hashes := self._cache.of(words_of(text)))]
        yield from texts
        edge = self.num_words - 1
        for first, second in itertools.combinations(texts, 2):
            for mark in self._marks:
                yield np.concatenate((first[-edge:], mark, second[:edge]))


class _Filter:
    """Which positions may begin an n-gram of the index: a Bloom filter of one hash, over the first words."""

    def __init__(self, anchors: np.ndarray) -> None:
        bits = max(16, (_BITS_PER_GRAM * max(1, len(anchors)) - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        slots = anchors >> self._shift
        self._bytes = np.zeros(1 << (bits - 3), dtype=np.uint8)
        np.bitwise_or.at(self._bytes, slots >> np.uint64(3), _BIT[slots & np.uint64(7)])

    def candidates(self, anchors: np.ndarray) -> np.ndarray:
        """Positions of hashes that may be in the index."""
        slots = anchors >> self._shift
        return np.flatnonzero(self._bytes[slots >> np.uint64(3)] & _BIT[slots & np.uint64(7)])


class _WordHashes(dict[bytes, int]):
    """Word → 64-bit hash; bounded."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        self[word] = value = xxhash.xxh3_64_intdigest(word)
        return value

    def of(self, words: Sequence[bytes]) -> np.ndarray:
        """Hashes of words, uint64 [num_words]."""
        return np.fromiter(map(self.__getitem__, words), dtype=np.uint64, count=len(words))


def _hashes_at(hashes: np.ndarray, starts: np.ndarray | None, length: int) -> np.ndarray:
    """Polynomial hash of `length` words from each start (None: every one), modulo 2^64; wrapping is meant."""
    num = len(hashes) - length + 1
    out = np.zeros(num if starts is None else len(starts), dtype=np.uint64)
    for offset in range(length):
        out *= _MULTIPLIER
        out += hashes[offset : offset + num] if starts is None else hashes[starts + offset]
    out ^= out >> np.uint64(29)  # the filter looks at the high bits
    out *= _MULTIPLIER
    return out


def _is_varied(words: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Whether more than half of an n-gram's words differ: rows of numbers and rulers say nothing."""
    windows = np.sort(words[starts[:, None] + np.arange(length)], axis=1)
    return (windows[:, 1:] != windows[:, :-1]).sum(axis=1) + 1 > length / 2


def _without_phrases(wholes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted n-grams with their items, without those of more than `MOST_ITEMS`; and which rows were kept."""
    order = np.lexsort((owners, wholes))
    sorted_wholes, sorted_owners = wholes[order], owners[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (sorted_wholes[1:] != sorted_wholes[:-1]) | (sorted_owners[1:] != sorted_owners[:-1])
    order, sorted_wholes, sorted_owners = order[is_new], sorted_wholes[is_new], sorted_owners[is_new]
    _, group, sizes = np.unique(sorted_wholes, return_inverse=True, return_counts=True)
    kept = sizes[group] <= MOST_ITEMS if len(order) else np.zeros(0, dtype=bool)
    return sorted_wholes[kept], sorted_owners[kept], order[kept]


def _overlap(owner: int, spans: list[tuple[int, int]], words: Sequence[bytes]) -> Overlap:
    """The longest run that shared n-grams of one item make together."""
    best = current = spans[0]
    for start, stop in spans[1:]:
        current = (current[0], max(current[1], stop)) if start <= current[1] else (start, stop)
        best = max(best, current, key=lambda span: span[1] - span[0])
    best = max(best, current, key=lambda span: span[1] - span[0])
    return Overlap(owner, best[1] - best[0], b" ".join(words[best[0] : best[1]]).decode())


def iterate_texts(value: object) -> Iterable[str]:
    """All strings of a record, in order: of its fields, and of lists and records within."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from iterate_texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from iterate_texts(inner)
