"""What names of files, folders, revisions and models tell of a checkpoint: its step, its tokens and its model.

lm-eval records none of these as fields. Many conventions are understood (`STEP_FORMS`); a name that tells nothing gives
None, so that the caller can ask for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

STEP_FORMS = "step_1000, global_step1000, step-50K, ckpt_1000, checkpoint-1000, iter_1000, 1000steps, or a folder 1000"
"""Examples for messages."""

_WORD = r"(?:global[-_ ]?)?(?:steps?|ckpt|chkpt|checkpoint|iteration|iters?|updates?)"
_STEP = re.compile(
    rf"(?:^|[^a-z]){_WORD}[-_= ]?(?P<step>\d+(?:\.\d+)?)(?P<unit>[km](?![a-z0-9]))?"
    r"(?P<bare>[-_](?P<tokens>\d+(?:\.\d+)?)(?P<power>[bt])(?![a-z0-9]))?",
    re.IGNORECASE,
)
"""`global_step71500`, `step-50K-105b`: the bare tokens of the second form count only behind a step in thousands."""
_STEP_BEFORE_WORD = re.compile(
    r"(?:^|[-_/ ])(?P<step>\d+)(?P<unit>[km])?[-_ ]?(?:steps?|iters?|iterations|updates)(?![a-z])", re.IGNORECASE
)
_COMPOSER = re.compile(r"(?:^|[-_])ep\d+-ba(?P<step>\d+)", re.IGNORECASE)
_TOKENS = re.compile(
    r"(?:^|[-_/ ])(?:tokens?[-_=]?(?P<after>\d+(?:\.\d+)?)(?P<power_after>[kmbt])?(?![a-z0-9])"
    r"|(?P<before>\d+(?:\.\d+)?)(?P<power_before>[kmbt])(?:[-_]?tok(?:ens?)?|t)(?![a-z0-9]|[-_=]\d))",
    re.IGNORECASE,
)
"""`tokens4B`, `token-2.5T`, `600bt`, `4B-tokens`."""
_NUMBER = re.compile(r"\d{1,9}")
_DATE = re.compile(r"(?:19|20)\d{6}")
_EPOCH = re.compile(r"(?:^|[-_])ep(?:och)?[-_=]?\d+", re.IGNORECASE)
_SHOTS = re.compile(r"[-_ ]?(?:\d+|zero|one|few|five)[-_ ]?shots?(?![a-z])", re.IGNORECASE)
_TIME = re.compile(r"[-_ ]?\d{4}-\d\d-\d\d(?:[T_ -]\d\d[-:.]\d\d[-:.]\d\d(?:\.\d+)?)?")
_POWERS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_GENERIC = frozenset(
    {
        *("checkpoint", "checkpoints", "ckpt", "ckpts", "eval", "evals", "evaluation", "evaluations", "export", "hf"),
        *("huggingface", "intermediate", "lm-eval", "lm_eval", "main", "model", "models", "results", "weights"),
    }
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in training a checkpoint is, as a name tells it.

    Attributes:
        step: -1 where only tokens are told.
        tokens: nan where only the step is told.
        rounding: half of the last digit's worth of the tokens, since names round them: 5e8 for `tokens4B`.
    """

    step: int
    tokens: float = math.nan
    rounding: float = math.nan


def place_in(names: Sequence[str], *, folders: Sequence[str] = ()) -> Place | None:
    """The place that the first telling name tells; a bare number counts only among `folders`, and last.

    Args:
        names: the most telling first.
        folders: those of the names that may be a bare number, without ending.

    Returns:
        The step of the first name with a step, with the tokens of the first name that has both that step and tokens.
        Without any step, the tokens of the first name that has some. None if nothing is told.
    """
    found = [place for name in names if (place := _place(name)) is not None]
    steps = [place.step for place in found if place.step >= 0]
    if not steps:
        steps = [int(name) for name in folders if _NUMBER.fullmatch(name) and not _DATE.fullmatch(name)]
    if not steps:
        return found[0] if found else None
    of_step = [place for place in found if place.step in (steps[0], -1) and math.isfinite(place.tokens)]
    return Place(steps[0], of_step[0].tokens, of_step[0].rounding) if of_step else Place(steps[0])


def model_in(part: str) -> str:
    """The part of a path without step, tokens, number of examples and date; empty if that names no model."""
    step = _step_match(part)
    if step is not None:
        before = part[: step.start()].strip("-_. ")
        part = before or part[step.end() :]
    part = part.rpartition("__")[2]  # lm-eval writes organisation__model as a folder
    for pattern in (_TOKENS, _TIME, _SHOTS, _EPOCH):
        part = pattern.sub("", part)
    part = part.strip("-_. ")
    while (
        shorter := re.sub(r"[-_.](?:intermediate|checkpoint|results?|evals?)$", "", part, flags=re.IGNORECASE)
    ) != part:
        part = shorter
    return "" if part.lower() in _GENERIC or part.isdigit() or not re.search("[a-z]", part, re.IGNORECASE) else part


def _place(name: str) -> Place | None:
    step = _step_match(name)
    tokens, rounding = _tokens(name, step)
    if step is None:
        return Place(-1, tokens, rounding) if math.isfinite(tokens) else None
    told = step.groupdict()
    return Place(round(float(told["step"]) * _POWERS[(told.get("unit") or "").lower()]), tokens, rounding)


def _step_match(name: str) -> re.Match[str] | None:
    """The last step that a name tells."""
    for pattern in (_STEP, _STEP_BEFORE_WORD, _COMPOSER):
        matches = list(pattern.finditer(name))
        if matches:
            return matches[-1]
    return None


def _tokens(name: str, step: re.Match[str] | None) -> tuple[float, float]:
    """Tokens and their rounding; nan for a name that tells none."""
    match = _TOKENS.search(name)
    told = step.groupdict() if step is not None else {}
    if match is not None:
        side = "after" if match["after"] else "before"
        number, power = match[side], match[f"power_{side}"] or ""
    elif told.get("bare") and told.get("unit"):
        number, power = told["tokens"], told["power"]
    else:
        return math.nan, math.nan
    worth = _POWERS[power.lower()]
    return float(number) * worth, 0.5 * worth * 10.0 ** -len(number.partition(".")[2])
