"""Learning rate over consumed tokens; the formulas are in `pretrain.schedule`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    kind: str = "cosine"
    """Shape after the warmup: `cosine`, `linear` or `constant`."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    min_learning_rate: float = 3e-5
    """Learning rate at the end of the decay."""
    warmup: str = "2000 steps"
    """Linear warmup from 0, as a duration. The first update has learning rate 0 (as Amber's)."""
    decay: str | None = None
    """Duration at whose end the minimum is reached, warmup included; null is the whole run."""
