"""Lengths of training, with their unit: steps, tokens or samples of sequences.

A `Duration` is written on the command line as `200 steps`, `4_587_520 tokens`, `2B tokens`, `1 samples`.
Tokens and steps are converted by the run's batch sizes (`pretrain.batch_size`), never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pretrain.errors import ConfigError

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_UNITS = ("steps", "tokens")
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmbt]?)\s*(steps?|tokens?)\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Duration:
    """A count of optimizer steps or of tokens.

    Attributes:
        count: how many, ≥ 0.
        unit: `steps` or `tokens`.
    """

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str, *, key: str = "duration") -> Duration:
        """Reads `"200 steps"` or `"1.5B tokens"`.

        Args:
            text: number, optional suffix k, M, B or T (powers of 1000), unit.
            key: the configuration key, for the error.

        Raises:
            ConfigError: the text is not a whole number of a known unit.
        """
        match = _PATTERN.match(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(
                f"{key}={text!r} is not a duration. Write a number and a unit ({' or '.join(_UNITS)}), "
                f"for example '200 steps' or '1.5B tokens'."
            )
        number, suffix, unit = match.groups()
        whole, _, fraction = number.replace("_", "").partition(".")
        factor = _SUFFIX[suffix.lower()]
        count, rest = divmod(int(whole + fraction) * factor, 10 ** len(fraction))
        if rest:
            raise ConfigError(f"{key}={text!r} is not a whole number of {unit}.")
        return cls(count, unit.lower() if unit.lower().endswith("s") else unit.lower() + "s")

    def __str__(self) -> str:
        return f"{self.count:_} {self.unit}"


def parse_share(text: str | float, *, key: str = "share") -> float:
    """Reads `1%`, `0.5 %` or `0.01` as a fraction.

    Args:
        text: above 0% and at most 100%.
        key: the configuration key, for the error.

    Raises:
        ConfigError: it is no such share.
    """
    written = str(text).strip()
    try:
        value = float(written[:-1]) / 100 if written.endswith("%") else float(written)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(f"{key}={text!r} is not a share above 0% and of at most 100%. Write, for example, '1%'.")
    return value
