"""Global batch size as a pure function of tokens consumed, and the arithmetic between steps, samples and tokens.

A ramp is a list of stages; a stage lasts until a given position of the run, and a step belongs to the stage in which
it begins, so a stage may end up to one step late. Sample i stays sample i: a ramp only decides where steps are cut.
Everything that turns steps into tokens or back asks here. No torch, no configuration classes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.errors import ConfigError
from pretrain.units import Duration

RAMP_KEY = "train.batch_ramp"


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of one batch size.

    Attributes:
        first_step: steps done before the stage.
        first_sample: sequences consumed before the stage.
        global_batch_size: sequences of each of its steps, over all ranks.
    """

    first_step: int
    first_sample: int
    global_batch_size: int


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Where the steps of a run begin.

    Attributes:
        sequence_length: tokens of a sequence.
        stages: in their order; the first begins at step 0, the last never ends.
    """

    sequence_length: int
    stages: tuple[Stage, ...]

    @classmethod
    def constant(cls, global_batch_size: int, *, sequence_length: int) -> BatchSizes:
        """One batch size for the whole run."""
        return cls(sequence_length, (Stage(0, 0, global_batch_size),))

    @classmethod
    def ramp(
        cls, stages: Sequence[tuple[Duration, int]], *, global_batch_size: int, sequence_length: int
    ) -> BatchSizes:
        """Stages, then one batch size for the rest of the run.

        Args:
            stages: until when, from the start of the run, and sequences per step; empty is no ramp.
            global_batch_size: sequences per step after the last stage.
            sequence_length: tokens of a sequence.

        Raises:
            ConfigError: a stage ends before it begins; or its batch is empty; all such stages at once.
        """
        found, problems = [], []
        step, sample = 0, 0
        for index, (until, size) in enumerate(stages):
            if size < 1:
                problems.append(f"{RAMP_KEY}[{index}].global_batch_size={size} is out of range: it must be at least 1.")
                continue
            tokens = sample * sequence_length
            if until.unit == "steps":
                num_steps = until.count - step
            else:
                num_steps = -(-(until.count - tokens) // (size * sequence_length))
            if num_steps < 1:
                problems.append(
                    f"{RAMP_KEY}[{index}].until='{until}' is not after the stage's begin at step {step}, token "
                    f"{tokens}: until counts from the start of the run and must rise from stage to stage."
                )
                continue
            found.append(Stage(step, sample, size))
            step, sample = step + num_steps, sample + num_steps * size
        if problems:
            raise ConfigError(problems)
        return cls(sequence_length, (*found, Stage(step, sample, global_batch_size)))

    @property
    def full_step_tokens(self) -> int:
        """Tokens of one step after the ramp, over all ranks."""
        return self.stages[-1].global_batch_size * self.sequence_length

    def at_sample(self, sample: int) -> int:
        """Sequences of the step that begins at an index of the sample order."""
        return self._stage_at_sample(sample).global_batch_size

    def samples(self, step: int) -> int:
        """Sequences consumed by the first `step` steps; the index at which the next one begins."""
        stage = self.stages[bisect_right(self.stages, step, key=lambda one: one.first_step) - 1]
        return stage.first_sample + (step - stage.first_step) * stage.global_batch_size

    def tokens(self, step: int) -> int:
        """Tokens consumed by the first `step` steps."""
        return self.samples(step) * self.sequence_length

    def steps(self, tokens: int) -> int:
        """Fewest steps that consume `tokens` tokens or more."""
        samples = -(-tokens // self.sequence_length)
        stage = self._stage_at_sample(samples)
        return stage.first_step - (-(samples - stage.first_sample) // stage.global_batch_size)

    def steps_of(self, duration: Duration) -> int:
        """A duration from the start of the run in steps, rounded up to whole steps."""
        return duration.count if duration.unit == "steps" else self.steps(duration.count)

    def tokens_of(self, duration: Duration) -> int:
        """A duration from the start of the run in tokens."""
        return duration.count if duration.unit == "tokens" else self.tokens(duration.count)

    def holds_multiple(self, every: Duration, *, step: int) -> bool:
        """Whether a multiple of a duration is reached in a step; 1 is the first step of a run."""
        before, after = (step - 1, step) if every.unit == "steps" else (self.tokens(step - 1), self.tokens(step))
        return after // every.count > before // every.count

    def _stage_at_sample(self, sample: int) -> Stage:
        return self.stages[bisect_right(self.stages, sample, key=lambda one: one.first_sample) - 1]
