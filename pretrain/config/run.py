"""The root of the configuration, and the sections that are not groups: run, train, parallel."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrain.batch_size import RAMP_KEY, BatchSizes
from pretrain.config.checkpoint import CheckpointConfig
from pretrain.config.cluster import ClusterConfig
from pretrain.config.data import DataConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.kernels import KernelsConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optimizer import OptimizerConfig
from pretrain.config.precision import PrecisionConfig
from pretrain.config.probe import ProbeConfig
from pretrain.config.schedule import ScheduleConfig
from pretrain.config.tokenizer import TokenizerConfig
from pretrain.config.track import TrackConfig
from pretrain.units import Duration, Steps, Tokens


@dataclass(kw_only=True, slots=True)
class RunSection:
    name: str = "run"
    """Name of the run: its folder under `run.dir`, its name in W&B and in exported model cards."""
    dir: str = "runs"
    """Folder that holds run directories; relative to the working directory."""
    seed: int = 0
    """Seeds the weights and the sample order. The same seed and data give the same run on any layout."""


@dataclass(kw_only=True, slots=True)
class BatchStage:
    """One stage of `train.batch_ramp`."""

    until: str = ""
    """Duration at whose end the stage is over, counted from the start of the run: `1B tokens`, `2000 steps`."""
    global_batch_size: int = 0
    """Sequences per optimizer step of this stage over all data-parallel ranks."""


@dataclass(kw_only=True, slots=True)
class TrainSection:
    steps: Steps | None = None
    """Optimizer steps of the whole run. Exactly one of steps and tokens is given."""
    tokens: Tokens | None = None
    """Tokens of the whole run, rounded up to whole steps; may be written as `10B`."""
    accept_new_length: bool = False
    """Lets a run that is resumed go on with another number of steps. The learning rate may jump: see
    `pretrain.length`. Give it at the start that changes the length; it is not kept."""
    micro_batch_size: int = 1
    """Sequences per data-parallel rank in one forward and backward."""
    global_batch_size: int = 8
    """Sequences per optimizer step over all data-parallel ranks; after the ramp where there is one."""
    batch_ramp: list[BatchStage] = field(default_factory=list)
    """Smaller batches at the start, as `[{until: 1B tokens, global_batch_size: 256}, …]`; empty is no ramp."""
    sequence_length: int = 2048
    """Tokens a sequence is trained on (inputs; labels are shifted by one)."""
    loss: str = "tokens"
    """`tokens`: mean over all targets of a batch. `sequences`: mean over sequences of the mean over each one's targets
    that are not `<s>` (EasyLM, OpenLLaMA)."""


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
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def batch_sizes(self) -> BatchSizes:
        """Batch size over the run: turns steps into tokens and back, with or without a ramp.

        Raises:
            ConfigError: a stage of the ramp is not a duration, or ends before it begins.
        """
        train = self.train
        stages = [
            (Duration.parse(stage.until, key=f"{RAMP_KEY}[{index}].until"), stage.global_batch_size)
            for index, stage in enumerate(train.batch_ramp)
        ]
        return BatchSizes.ramp(stages, global_batch_size=train.global_batch_size, sequence_length=train.sequence_length)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.steps is not None:
            return self.train.steps
        return self.batch_sizes.steps(self.train.tokens or 0)

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, in whole steps."""
        return self.batch_sizes.tokens(self.total_steps)
