"""When the run saves, what it keeps, and what it exports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    early: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    """Steps saved early, where abilities move fastest (Pythia's log spacing); those after the end are dropped."""
    every: str = "1000 steps"
    """Then one save at every multiple of this duration, and one at the end of the run."""
    start_from: str | None = None
    """Weights a new run starts with: a Hugging Face LLaMA folder, or a checkpoint of another run. Null: random."""
    background: bool = True
    """Training waits for the copy only; files are written behind it, one save in flight at most."""
    keep: int | None = None
    """Checkpoints that keep optimizer state; older ones keep weights only. Null keeps everything."""
    export: str = "none"
    """Hugging Face folders: `none`, `last` (at the end of the run) or `all` (at every save)."""
    export_tolerance: float | None = None
    """Nats of log-probability by which an export may differ from the live model on fixed prompts; beyond it nothing is
    published. Null: the spread of log-probabilities (at least 1) times 1e-5 for fp32, 1e-2 for tf32, 3e-2 for bf16."""
