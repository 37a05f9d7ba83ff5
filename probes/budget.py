"""How much of a save's scoring a share of wall time pays for.

What a tier costs is predicted from the tokens of its plan and the throughput measured so far, before it runs. A run
has a fixed number of saves left and, at its present speed, a known time to its end: with each save an even part of the
share falls due. What a save does not spend is there for the later ones, so a tier that is too dear for every save is
scored at every second, or tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MARGIN = 1.1
"""Predictions are raised by this: throughput varies from save to save, and a budget is a promise."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A plan that may be scored at a save.

    Attributes:
        name: `full` or `fast`.
        tokens: what a pass computes.
    """

    name: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What to score at a save.

    Attributes:
        tier: its name; None where nothing fits.
        predicted_seconds: cost of each tier, by name.
        allowed_seconds: what this save may cost.
    """

    tier: str | None
    predicted_seconds: dict[str, float]
    allowed_seconds: float


class Budget:
    """Chooses tiers for the saves of one process's life; earlier lives have spent their own share.

    Args:
        share: of wall time, 0.01 for 1%.
        tiers: cheapest last.
    """

    def __init__(self, share: float, tiers: Sequence[Tier]) -> None:
        self._share, self._tiers = share, tuple(tiers)
        self._observed: list[tuple[int, float]] = []
        self.spent_seconds = 0.0
        self._generation_seconds: dict[str, float] = {}
        self._num_asked = 0

    def record(self, tokens: int, seconds: float) -> None:
        """Takes note of a pass that was made: its tokens, and its wall time with everything around it."""
        self.spent_seconds += seconds
        self._observed = [*self._observed[-2:], (tokens, seconds)]

    def record_generation(self, tier: str, seconds: float) -> None:
        """Takes note of what generating answers cost beside a tier's pass: expected again the next time."""
        self.spent_seconds += seconds
        self._generation_seconds[tier] = seconds

    def predict(self, tokens: int) -> float:
        """Seconds of a pass, by the slowest of the last three; none has been made: infinite."""
        if not self._observed:
            return float("inf")
        return _MARGIN * tokens * max(seconds / max(tokens_then, 1) for tokens_then, seconds in self._observed)

    def choose(self, *, elapsed_seconds: float, remaining_seconds: float, remaining_saves: int) -> Choice:
        """The dearest tier that fits, this save being one of `remaining_saves`.

        An even part of the share falls due with each save, and what is not spent stays. The last save gets all that is
        left, and up to half is kept for a full last one where that suffices: everybody asks about the final model.

        Args:
            elapsed_seconds: wall time so far.
            remaining_seconds: wall time to the end at present speed.
            remaining_saves: saves still to come, this one included.
        """
        whole = self._share * (elapsed_seconds + remaining_seconds)
        self._num_asked += 1
        beside = self._generation_seconds
        predicted = {tier.name: self.predict(tier.tokens) + beside.get(tier.name, 0.0) for tier in self._tiers}
        due = whole
        if remaining_saves > 1:
            dearest = max(predicted.values())
            reserved = dearest if dearest <= whole / 2 else 0.0
            due = (whole - reserved) * self._num_asked / (self._num_asked + remaining_saves - 1)
        left = due - self.spent_seconds
        for tier in self._tiers:
            if predicted[tier.name] <= left:
                return Choice(tier.name, predicted, left)
        return Choice(None, predicted, left)
