"""Ranges of the sample order that are left out, bad batches for example, in closed form.

A sample's index in the order never changes; what changes is which index the n-th sample that is trained on has.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pretrain.errors import ConfigError

_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


@dataclass(frozen=True, slots=True)
class Skips:
    """Disjoint half-open ranges of indices in rising order.

    Attributes:
        ranges: pairs (first, stop).
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Skips:
        """Reads `data.skip`.

        Raises:
            ConfigError: a text is not `first:stop`, is empty, or begins before the one above ends; all at once.
        """
        problems: list[str] = []
        found: list[tuple[int, int]] = []
        for position, text in enumerate(texts):
            key = f"data.skip[{position}]={text!r}"
            match = _RANGE.fullmatch(text)
            if match is None:
                problems.append(f"{key} is not a range of samples: write 'first:stop', as '2240000:2244480'.")
                continue
            first, stop = (int(part) for part in match.groups())
            if stop <= first:
                problems.append(f"{key} is empty: stop is not part of the range and must be above {first}.")
            elif found and first < found[-1][1]:
                problems.append(
                    f"{key} begins before {found[-1][1]}, where the range before it ends: list them rising."
                )
            else:
                found.append((first, stop))
        if problems:
            raise ConfigError(problems)
        return cls(tuple(found))

    def texts(self) -> list[str]:
        """As `data.skip` is written."""
        return [f"{first}:{stop}" for first, stop in self.ranges]

    def index(self, consumed: int) -> int:
        """Index in the order of the sample that follows `consumed` samples that were trained on."""
        # Samples that are trained on before each range.
        kept_before = self._kept_before()
        passed = bisect_right(kept_before, consumed)
        return consumed + sum(stop - first for first, stop in self.ranges[:passed])

    def runs(self, consumed: int, count: int) -> Iterator[tuple[int, int]]:
        """Stretches (first index, length) of the order that samples [consumed, consumed + count) lie in."""
        while count:
            first = self.index(consumed)
            until = next((start for start, _ in self.ranges if start > first), first + count)
            taken = min(count, until - first)
            yield first, taken
            consumed, count = consumed + taken, count - taken

    def before(self, index: int) -> tuple[tuple[int, int], ...]:
        """The ranges as far as they lie before an index."""
        return tuple((first, min(stop, index)) for first, stop in self.ranges if first < index)

    def _kept_before(self) -> list[int]:
        skipped = accumulate((stop - first for first, stop in self.ranges), initial=0)
        return [first - left_out for (first, _), left_out in zip(self.ranges, skipped, strict=False)]
