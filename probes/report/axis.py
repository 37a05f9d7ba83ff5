"""The token axis all figures share: logarithmic, with step 0 at a place of its own at the left edge.

A logarithmic axis has no zero, but the scores before training are what every curve is read against. They
are drawn at half the tokens of one step and labelled `0`; the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.track.legible import legible_count


@dataclass(frozen=True, slots=True)
class TokenAxis:
    """Range and ticks of the token axis of one report.

    Attributes:
        start_tokens: where step 0 is drawn.
        end_tokens: the right end: the last tokens seen.
        starts_at_zero: whether anything was measured at step 0.
    """

    start_tokens: float
    end_tokens: float
    starts_at_zero: bool

    @classmethod
    def spanning(cls, tokens: Sequence[int], *, tokens_per_step: int) -> TokenAxis:
        """The axis for all positions of a run; empty sequences give an axis of one step."""
        positive = [count for count in tokens if count > 0]
        first_drawn = min([tokens_per_step, *positive]) / 2
        zero = not positive or len(positive) < len(tokens)
        start = first_drawn if zero else min(min(positive), max(positive) * 0.5)
        return cls(start, float(max(positive, default=tokens_per_step)), zero)

    def place(self, tokens: float) -> float:
        """Where a position is drawn."""
        return float(tokens) if tokens > 0 else self.start_tokens

    def layout(self) -> dict[str, Any]:
        """The `xaxis` of a plotly layout; `linear_range` has the range of the linear view."""
        ticks = [(self.start_tokens, "0")] if self.starts_at_zero else []
        ticks += [(tick, _tick_text(tick)) for tick in self._ticks()]
        return {
            "type": "log",
            "range": [math.log10(self.start_tokens) - 0.02, math.log10(self.end_tokens) + 0.02],
            "tickmode": "array",
            "tickvals": [value for value, _ in ticks],
            "ticktext": [text for _, text in ticks],
            "minor": {"tickmode": "array", "tickvals": self._minor_ticks(), "ticks": "outside", "ticklen": 3},
        }

    def linear_range(self) -> list[float]:
        """Range of the same axis when it is shown linear."""
        return [-0.015 * self.end_tokens, 1.015 * self.end_tokens]

    def _minor_ticks(self) -> list[float]:
        """The marks between powers of ten, by which a logarithmic axis is recognised."""
        exponents = range(math.floor(math.log10(self.start_tokens)), math.ceil(math.log10(self.end_tokens)) + 1)
        marks = [multiple * 10.0**exponent for exponent in exponents for multiple in range(1, 10)]
        return [mark for mark in marks if self.start_tokens < mark <= self.end_tokens]

    def _ticks(self) -> list[float]:
        """Round numbers, not too many; none so near to step 0 that the labels would touch."""
        decades = math.log10(self.end_tokens / self.start_tokens)
        multiples = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3.2 else (1,)
        exponents = range(math.floor(math.log10(self.start_tokens)), math.ceil(math.log10(self.end_tokens)) + 1)
        every = max(1, round(decades / 6))
        candidates = [m * 10.0**e for e in exponents if e % every == 0 for m in multiples]
        nearest = self.start_tokens * 10 ** (decades / 14) if self.starts_at_zero else self.start_tokens
        return [tick for tick in candidates if nearest <= tick <= self.end_tokens * 1.001]


def _tick_text(tokens: float) -> str:
    text = legible_count(tokens)
    digits = text.rstrip("kMBT")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + text[len(digits) :]
