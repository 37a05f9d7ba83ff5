"""The root of the configuration, and the sections that are not groups: run, train, parallel."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.config.checkpoint import CheckpointConfig
from pretrain.config.cluster import ClusterConfig
from pretrain.config.data import DataConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optimizer import OptimizerConfig
from pretrain.config.precision import PrecisionConfig
from pretrain.config.probe import ProbeConfig
from pretrain.config.schedule import ScheduleConfig
from pretrain.config.tokenizer import TokenizerConfig
from pretrain.config.track import TrackConfig


@dataclass(kw_only=True, slots=True)
class RunSection:
    name: str = "run"
    """Name of the run: its folder under `run.dir`, its name in W&B and in exported model cards."""
    dir: str = "runs"
    """Folder that holds run directories; relative to the working directory."""
    seed: int = 0
    """Seeds the weights and the sample order. The same seed and data give the same run on any layout."""


@dataclass(kw_only=True, slots=True)
class TrainSection:
    steps: int | None = None
    """Optimizer steps of the whole run. Exactly one of steps and tokens is given."""
    tokens: int | None = None
    """Tokens of the whole run, rounded up to whole steps."""
    micro_batch_size: int = 1
    """Sequences per data-parallel rank in one forward and backward."""
    global_batch_size: int = 8
    """Sequences per optimizer step over all data-parallel ranks."""
    sequence_length: int = 2048
    """Tokens a sequence is trained on (inputs; labels are shifted by one)."""


@dataclass(kw_only=True, slots=True)
class ParallelSection:
    """Process grid. Data parallel is what remains: world size / (tensor · pipeline · context)."""

    tensor: int = 1
    """Ranks that share each weight matrix."""
    pipeline: int = 1
    """Pipeline stages."""
    virtual_pipeline: int = 1
    """Model chunks per pipeline stage (interleaved schedule); 1 is plain 1F1B."""
    context: int = 1
    """Ranks that share each sequence."""
    sequence: bool = False
    """Megatron's sequence parallelism in the tensor-parallel group."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run, completely. Composed by Hydra from `configs/`; see `pretrain.config.load`."""

    run: RunSection = field(default_factory=RunSection)
    train: TrainSection = field(default_factory=TrainSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all ranks."""
        return self.train.global_batch_size * self.train.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.steps is not None:
            return self.train.steps
        return -(-(self.train.tokens or 0) // self.tokens_per_step)
