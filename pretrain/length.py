"""What a changed length means for a run that goes on, and whether the user has accepted it.

Most schedules follow the length of the run (`pretrain.schedule`), so that another length moves the learning rate in
the middle of training. Whatever the schedule, a changed length is refused until `train.accept_new_length=true` accepts
it for this start; calendars of saves follow the length too. A run of which nothing has been trained may change freely.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.schedule import learning_rate

ACCEPT_KEY = "train.accept_new_length"


@dataclass(frozen=True, slots=True)
class LengthChange:
    """A run's lengths and the learning rates of its next step, with the old length and with the new one.

    Attributes:
        steps_before: optimizer steps of the whole run, as its `config.yaml` has it.
        steps_now: as the configuration of this start has it.
        tokens_before: tokens of the whole run.
        tokens_now: the same, of this start.
        learning_rate_before: learning rate of the next step with the old length.
        learning_rate_now: learning rate of the next step with the new length.
    """

    steps_before: int
    steps_now: int
    tokens_before: int
    tokens_now: int
    learning_rate_before: float
    learning_rate_now: float

    def fields(self) -> dict[str, Any]:
        """The fields of the event."""
        return asdict(self)

    def sentence(self) -> str:
        """What changes, for a person."""
        rates = (
            f"is {self.learning_rate_before:.6g} with both lengths"
            if self.learning_rate_before == self.learning_rate_now
            else f"changes from {self.learning_rate_before:.6g} to {self.learning_rate_now:.6g}"
        )
        return (
            f"The run's length changes from {self.steps_before:,} steps ({self.tokens_before:,} tokens) to "
            f"{self.steps_now:,} steps ({self.tokens_now:,} tokens). The learning rate of the next step {rates}."
        )


def check_length(before: RunConfig, config: RunConfig, *, step: int, tokens: int) -> LengthChange | None:
    """Compares the length of a run that goes on with the length it had.

    Args:
        before: the run's recorded configuration.
        config: the configuration of this start; its identity is the same.
        step: optimizer steps that the run has reached.
        tokens: tokens that it has reached.

    Returns:
        The change; None where the length is the same.

    Raises:
        ConfigError: the run is past its new length, or the length changed and nobody accepted it.
    """
    if config.total_steps < step:
        raise ConfigError(
            f"{_length_of(config)} is {config.total_steps:,} steps, but {config.run.name} has reached step {step:,}. "
            f"Give a length of at least {step:,} steps, or choose another run.name."
        )
    if config.total_steps == before.total_steps:
        return None
    rate_before, rate_now = (
        learning_rate(one.schedule, tokens, total_tokens=one.total_tokens, batch_sizes=one.batch_sizes)
        for one in (before, config)
    )
    change = LengthChange(
        before.total_steps, config.total_steps, before.total_tokens, config.total_tokens, rate_before, rate_now
    )
    if step > config.checkpoint.start_step and not config.train.accept_new_length:
        raise ConfigError(
            f"{config.run.name} has reached step {step:,}. {change.sentence()} Restore {_length_of(before)}, or accept "
            f"the new length for this start with {ACCEPT_KEY}=true."
        )
    return change


def _length_of(config: RunConfig) -> str:
    """The override that gives a configuration's length."""
    if config.train.steps is not None:
        return f"train.steps={config.train.steps}"
    return f"train.tokens={config.train.tokens}"
