"""The process grid: how many ranks do what, and which coordinates a rank has.

Pure arithmetic, without torch, so that plans and tests can lay out thousands of ranks. Megatron-core builds the real
groups; the order here is its default, tp-cp-ep-dp-pp: tensor varies fastest, pipeline slowest.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.grid import batch_problems, grid_problems
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Place of one rank in the grid; each is a rank within its own group."""

    tensor: int
    context: int
    data: int
    pipeline: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelLayout:
    """Sizes of the grid and the batch on it.

    Attributes:
        world_size: processes of the run.
        tensor, context, data, pipeline: group sizes; their product is the world size.
        virtual_pipeline: model chunks per pipeline stage.
        micro_batch_size: sequences of one forward and backward on a data-parallel rank.
        num_microbatches: forward and backward passes per optimizer step; per step after the batch ramp, if any.
    """

    world_size: int
    tensor: int
    context: int
    data: int
    pipeline: int
    virtual_pipeline: int
    micro_batch_size: int
    num_microbatches: int

    @classmethod
    def create(cls, config: RunConfig, *, world_size: int) -> ParallelLayout:
        """Lays a configuration out over `world_size` processes.

        Raises:
            ConfigError: the grid or the batch does not divide evenly; the message has the sum and what would fit.
        """
        parallel, train = config.parallel, config.train
        problems = grid_problems(parallel, world_size=world_size)
        if problems:
            raise ConfigError(problems)
        data = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
        problems = batch_problems(train, data_parallel=data)
        if problems:
            raise ConfigError(problems)
        return cls(
            world_size=world_size,
            tensor=parallel.tensor,
            context=parallel.context,
            data=data,
            pipeline=parallel.pipeline,
            virtual_pipeline=parallel.virtual_pipeline,
            micro_batch_size=train.micro_batch_size,
            num_microbatches=train.global_batch_size // (train.micro_batch_size * data),
        )

    def coordinates(self, rank: int) -> Coordinates:
        """Where a global rank stands."""
        if not 0 <= rank < self.world_size:
            raise ConfigError(f"rank {rank} is not in 0 … {self.world_size - 1}.")
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(tensor=tensor, context=context, data=data, pipeline=pipeline)

    def rank_of(self, at: Coordinates) -> int:
        """The global rank at given coordinates; the inverse of `coordinates`."""
        return at.tensor + self.tensor * (at.context + self.context * (at.data + self.data * at.pipeline))

    def describe(self) -> str:
        """One line for logs: `4 processes = 2 tensor x 1 context x 2 data x 1 pipeline; 2 microbatches of 4`."""
        return (
            f"{self.world_size} processes = {self.tensor} tensor x {self.context} context x {self.data} data x "
            f"{self.pipeline} pipeline; {self.num_microbatches} microbatches of {self.micro_batch_size}"
        )
