"""The verdicts on a run, their order, and one observation that calls for one: what every rule of the state gives back.

The rules themselves are elsewhere, one room for each kind; `probes.dynamics.state` asks them all and sums up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEALTHY, UNKNOWN, WATCH, ACT = "healthy", "unknown", "watch", "act"

VERDICTS = (HEALTHY, UNKNOWN, WATCH, ACT)
"""From the mildest to the gravest. Where nothing could be judged (`unknown`) is graver than where all is well."""

VERDICT_NUMBERS = {UNKNOWN: -1, HEALTHY: 0, WATCH: 1, ACT: 2}
"""The verdicts as a curve shows them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One observation that speaks about the run.

    Attributes:
        kind: the rule it comes from: `change`, `level`, `divergence`, `loss`, `decay`, `unchanged` or `learning rate`.
        verdict: what it calls for by itself.
        domain: of the tasks; empty for the whole run.
        deviation: in standard deviations, more being better; nan where it is no such thing.
        sentence: in words, with numbers.
    """

    kind: str
    verdict: str
    domain: str = ""
    deviation: float = float("nan")
    sentence: str


def gravest(verdicts: Iterable[str], *, default: str = HEALTHY) -> str:
    """The gravest of several verdicts."""
    return max(verdicts, key=VERDICTS.index, default=default)
