"""What the figures of a run's state mean, in the words that stand below its table on the console and in the report.

Apart from `probes.dynamics.state`, which computes them, since only pages and commands need the words.
"""

from __future__ import annotations

from probes.dynamics.surprises import ACT_FROM, ACT_FROM_ALONE, LEVEL_FROM, WATCH_FROM, WATCH_FROM_ALONE


def figures_explained() -> tuple[str, ...]:
    """What `change` and `level` are, and from which value on they call for something; a line each."""
    return (
        "change and level are in standard deviations: below 0 is worse than expected. A healthy run stays "
        "between -2 and 2 nearly always.",
        "change: the scores of the last one to three checkpoints against what was expected of them after the run's own "
        f"past. From {-WATCH_FROM:g} down it calls for watch, from {-ACT_FROM:g} down for act "
        f"({-WATCH_FROM_ALONE:g} and {-ACT_FROM_ALONE:g} against the own past alone), if more than one "
        "task or more than one checkpoint says so.",
        "level: the latest scores against runs of this size and token count, whatever this run did before. From "
        f"{-LEVEL_FROM:g} down it calls for watch. Without references there is no level.",
    )
