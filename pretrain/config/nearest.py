"""The nearest right name for a wrong one: every "did you mean" of the configuration comes from here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, candidates: Iterable[str], *, count: int = 3) -> list[str]:
    """Candidates that look like `word`, best first; dotted keys are also compared by their last part.

    Args:
        word: what was written.
        candidates: what could have been meant.
        count: how many at most.
    """
    names = list(dict.fromkeys(candidates))
    lowered = word.lower()
    tail = lowered.rsplit(".", 1)[-1]

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, lowered, name.lower()).ratio()
        last = difflib.SequenceMatcher(None, tail, name.lower().rsplit(".", 1)[-1]).ratio()
        contained = 0.7 if len(tail) > 3 and tail in name.lower() else 0.0
        return max(whole, 0.95 * last, contained)

    scored = sorted(((likeness(name), name) for name in names), key=lambda pair: (-pair[0], pair[1]))
    best = scored[0][0] if scored else 0.0
    return [name for score, name in scored[:count] if score >= max(0.6, best - 0.15)]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """` Did you mean a or b?` with a leading blank, or nothing when no candidate is near."""
    names = nearest(word, candidates)
    return f" Did you mean {' or '.join(names)}?" if names else ""
