"""Every error a user can cause, one class per family.

A message names the key or file, the value got, what is allowed, and the remedy. The command line prints
the message alone (no traceback) and leaves with `exit_code`; anything else that escapes is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class FinelineError(Exception):
    """Base of all errors that are explained to the user instead of traced."""

    exit_code = 1


class ConfigError(FinelineError):
    """The configuration cannot run; carries every problem found, not only the first.

    Attributes:
        problems: one sentence or short paragraph per problem, each with key, value, allowed values, remedy.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(FinelineError):
    """Text or token files that are missing, empty, damaged, or do not belong to the tokenizer."""


class TokenizerError(FinelineError):
    """A tokenizer model that cannot be read, trained, or lacks what the run needs."""


class CheckpointError(FinelineError):
    """A checkpoint that cannot be written, is incomplete or damaged, or belongs to another run."""


class EngineError(FinelineError):
    """The training engine met a state it cannot continue from."""


class ProbeError(FinelineError):
    """A suite or task that is unknown or cannot be scored; training goes on without it."""
