"""Where measurements are shown. `metrics.jsonl` is the record and always written; the rest are views of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class JsonlConfig:
    enabled: bool = True
    """Always true: the JSONL record is what resumes, reports and every other view are made from."""


@dataclass(kw_only=True, slots=True)
class ConsoleConfig:
    enabled: bool = False
    """Progress bar on a terminal, plain lines in a file."""
    every: str = "10 steps"
    """How often a line is written where the output is not a terminal."""


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    enabled: bool = False
    """Log to Weights & Biases; offline unless WANDB_MODE or WANDB_API_KEY say otherwise."""
    project: str = "fineline"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null is the account's default."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    enabled: bool = False
    """Write TensorBoard event files to `<run>/tensorboard`."""


@dataclass(kw_only=True, slots=True)
class DynamicsConfig:
    every: str | None = "100 steps"
    """How often a step is measured layer by layer (gradients, updates, activations), the first step included; null
    is never. A measured step takes longer and holds a second copy of this rank's fp32 weights."""


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """`track=[console,jsonl,wandb,tensorboard]` switches views on."""

    jsonl: JsonlConfig = field(default_factory=JsonlConfig)
    console: ConsoleConfig = field(default_factory=ConsoleConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
