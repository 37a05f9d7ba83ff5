"""Lengths of training in steps or tokens, and shares: how they are written, everywhere.

A length is a number with or without its unit: `10 steps`, `10B tokens`, `1.5e9 tokens`, `4_587_520`, `10B`, `1e9`.
Where the unit is left out, keys that are named after tokens (`train.tokens`) count tokens, all others count steps.
Tokens and steps are converted by the run's batch sizes (`pretrain.batch_size`), never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    Steps = int
    Tokens = int
else:
    Steps = Tokens = Any
"""Types of configuration fields. Their values may be written as lengths; composing makes them whole numbers
(`pretrain.config.written`), which is all that the code ever sees. Any, because OmegaConf cannot merge unions in the
entries of a dictionary, as sources are."""

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_PATTERN = re.compile(
    r"\s*(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,2})?)\s*(?P<suffix>[kmbt]?)\s*(?P<unit>steps?|tokens?)?\s*",
    re.IGNORECASE,
)


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
    def parse(cls, written: int | float | str, *, key: str = "duration", unit: str | None = "steps") -> Duration:
        """Reads `"200 steps"`, `"1.5B tokens"` or a number alone.

        Args:
            written: number, optional suffix k, M, B or T (powers of 1000), optional unit.
            key: the configuration key, for the error.
            unit: what a number alone counts; None where that could be taken for something else, and is refused.

        Raises:
            ConfigError: it is no length, or not a whole number.
        """
        return cls(*_read(written, key=key, unit=unit, what="a duration"))

    def __str__(self) -> str:
        return f"{self.count:_} {self.unit}"


def parse_count(written: int | float | str, *, unit: str, key: str = "") -> int:
    """Reads how many steps, tokens or other things there are: `200`, `1e9`, `10B`, `10B tokens`.

    Args:
        written: as for `Duration.parse`; a whole number is itself.
        unit: what is counted.
        key: the configuration key, for the error.

    Raises:
        ConfigError: it is no whole number, or it has another unit.
    """
    if isinstance(written, int) and not isinstance(written, bool):
        return written
    count, found = _read(written, key=key, unit=unit, what=f"a number of {unit}")
    if found != unit:
        raise ConfigError(f"{_shown(written, key)} counts {found}, where {unit} are counted. Give {unit}.")
    return count


def _read(written: int | float | str, *, key: str, unit: str | None, what: str) -> tuple[int, str]:
    match = None if isinstance(written, bool) else _PATTERN.fullmatch(str(written))
    named = unit if match is None else match["unit"] or unit
    if match is None or named is None:
        alone = f"Without a unit it counts {unit}" if unit is not None else "Here the unit is needed"
        raise ConfigError(
            f"{_shown(written, key)} is not {what}. Write a number and a unit, for example '200 steps', '1.5B tokens', "
            f"10k or 1e9. {alone}."
        )
    named = named.lower().removesuffix("s") + "s"
    number = Decimal(match["number"].replace("_", "")) * _SUFFIX[match["suffix"].lower()]
    if number != int(number):
        raise ConfigError(f"{_shown(written, key)} is not a whole number of {named}.")
    return int(number), named


def _shown(written: int | float | str, key: str) -> str:
    return f"{key}={written!r}" if key else repr(written)


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
