"""When the run saves, what it keeps, and what it exports."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.units import Steps


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    early: list[Steps] = field(default_factory=lambda: [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    """Steps saved early, where abilities move fastest (Pythia's log spacing); those after the end are dropped."""
    every: str | None = "1000 steps"
    """Then one save at every multiple of this duration, in steps or tokens; null has none. The end is always saved."""
    per_decade: int | None = None
    """Saves per tenfold of tokens, evenly spaced in their logarithm, from the first step to the last."""
    chunk_ends: bool = True
    """data.order=chunked: a save after the last step of every chunk, as Amber."""
    before_decay: bool = True
    """schedule.kind=wsd: a save at the last step before the decay, from which a longer run can go on."""
    milestones: str | None = None
    """Saves at multiples of this duration, and before a decay, keep their optimizer state whatever `keep` says."""
    start_from: str | None = None
    """Weights a new run starts with: a Hugging Face LLaMA folder, a checkpoint of another run, or that run itself (its
    newest checkpoint is taken). Null: random."""
    start_step: Steps = 0
    """Steps those weights have been trained: schedule, calendar and sample order go on from there, without moments."""
    background: bool = True
    """Training waits for the copy only; files are written behind it, one save in flight at most."""
    keep: int | None = None
    """Checkpoints that keep optimizer state, the newest ones; older ones keep weights only. Null keeps everything."""
    export: str = "none"
    """Hugging Face folders: `none`, `last` (at the end of the run) or `all` (at every save)."""
    export_dtype: str = "float32"
    """Of their weights: `float32` (the master weights, bitwise) or `bfloat16` (rounded to nearest, half the size)."""
    export_name: str = "step_{step:08d}"
    """Name of an export, and its revision on a hub, as `ckpt_{index:03d}` (Amber) or `{run}-{billions}B`. Fields:
    run, step, tokens, billions (of tokens, two digits), index (0 for the first chunk end or multiple of `every`)."""
    hub_repository: str | None = None
    """Hugging Face repository that exports are pushed to. With a field in it (`me/Amber-{billions}B`) each export has
    a repository of its own; without, a revision of its own, and the last one is `main` too. Null pushes nothing."""
    allow_tokenizer_mismatch: bool = False
    """Publish exports although `AutoTokenizer` gives other ids than training did. The model card says so. Otherwise
    such an export is refused."""
    export_tolerance: float | None = None
    """Nats of log-probability by which an export may differ from the live model on fixed prompts; beyond it nothing is
    published. Null: the spread of log-probabilities (at least 1) times 1e-5 for fp32, 1e-2 for tf32, 3e-2 for bf16."""
