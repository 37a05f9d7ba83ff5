"""Numbers as people read them: large counts and lengths of time in few characters.

Shared by the console and the report, so that both say the same. The record holds the exact numbers.
"""

from __future__ import annotations


def legible_seconds(seconds: float) -> str:
    """A length of time in its two largest units: `42s`, `3m12s`, `5h04m`, `2d07h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def legible_count(count: float) -> str:
    """A large number in three digits: `950`, `12.3k`, `4.59M`, `1.21B`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit * 0.9995:
            scaled = count / limit
            digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{digits}f}{suffix}"
    return f"{count:.0f}"
