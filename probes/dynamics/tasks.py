"""What is known of a task by its name alone: its domain and the score of guessing.

For records that do not say it themselves (lm-eval results, published tables). A run's own record does: its suite names
the domains and its plan counts the choices. Domains follow the bundled suites of `configs/probes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from probes.dynamics.metrics import is_accuracy


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A task that is known by name.

    Attributes:
        domain: its domain.
        chance: accuracy of guessing.
    """

    domain: str
    chance: float


_KNOWN = {
    "piqa": KnownTask("commonsense", 0.5),
    "hellaswag": KnownTask("commonsense", 0.25),
    "winogrande": KnownTask("commonsense", 0.5),
    "copa": KnownTask("commonsense", 0.5),
    "social_iqa": KnownTask("commonsense", 1 / 3),
    "socialiqa": KnownTask("commonsense", 1 / 3),
    "siqa": KnownTask("commonsense", 1 / 3),
    "commonsense_qa": KnownTask("commonsense", 0.2),
    "csqa": KnownTask("commonsense", 0.2),
    "storycloze": KnownTask("commonsense", 0.5),
    "arc_easy": KnownTask("knowledge", 0.25),
    "arc_challenge": KnownTask("knowledge", 0.25),
    "sciq": KnownTask("knowledge", 0.25),
    "openbookqa": KnownTask("knowledge", 0.25),
    "openbook_qa": KnownTask("knowledge", 0.25),
    "boolq": KnownTask("knowledge", 0.5),
    "triviaqa": KnownTask("knowledge", 0.0),
    "nq_open": KnownTask("knowledge", 0.0),
    "mmlu": KnownTask("examination", 0.25),
    "hendryckstest": KnownTask("examination", 0.25),
    "cmmlu": KnownTask("examination", 0.25),
    "ceval": KnownTask("examination", 0.25),
    "agieval": KnownTask("examination", 0.25),
    "lambada": KnownTask("language", 0.0),
    "blimp": KnownTask("language", 0.5),
    "wsc": KnownTask("language", 0.5),
    "wic": KnownTask("language", 0.5),
    "race": KnownTask("understanding", 0.25),
    "record": KnownTask("understanding", 0.0),
    "anli_r1": KnownTask("understanding", 1 / 3),
    "anli_r2": KnownTask("understanding", 1 / 3),
    "anli_r3": KnownTask("understanding", 1 / 3),
    "cb": KnownTask("understanding", 1 / 3),
    "logiqa": KnownTask("reasoning", 0.25),
    "rte": KnownTask("reasoning", 0.5),
    "drop": KnownTask("reasoning", 0.0),
    "bbh": KnownTask("reasoning", 0.0),
    "gsm8k": KnownTask("mathematics", 0.0),
    "math": KnownTask("mathematics", 0.0),
    "humaneval": KnownTask("code", 0.0),
    "mbpp": KnownTask("code", 0.0),
    "truthfulqa": KnownTask("truthfulness", 0.0),
    "crows_pairs": KnownTask("bias", 0.5),
    "c4_en": KnownTask("loss", float("nan")),  # held-out text, `LOSS_DOMAIN` of the table
    "wikitext": KnownTask("loss", float("nan")),
    "pile": KnownTask("loss", float("nan")),
}
_BY_LENGTH = sorted(_KNOWN, key=len, reverse=True)
_PREFIX = re.compile(r"^fineline_")


def known_task(name: str) -> KnownTask | None:
    """What is known of a task whose name begins with a known one (`piqa_val_rc_5shot`, `mmlu_anatomy`)."""
    plain = _PREFIX.sub("", name.lower())
    for known in _BY_LENGTH:
        if plain == known or plain.startswith((known + "_", known + "-")):
            return _KNOWN[known]
    return None


def domain_of(name: str) -> str:
    """The domain of a task; `other` for one that is not known."""
    known = known_task(name)
    return known.domain if known else "other"


def chance_of(name: str, metric: str) -> float:
    """The score of guessing; nan for a metric or task of which that is not known."""
    if metric.endswith("_rescaled"):
        return 0.0
    known = known_task(name)
    return known.chance if known and is_accuracy(metric) else float("nan")


def is_twin(first: str, second: str) -> bool:
    """Whether two tasks ask the same thing of other items (`…_val_…` and `…_test_…`): no siblings, but copies."""
    return first == second or without_split(first) == without_split(second)


@cache
def without_split(name: str) -> str:
    """The name of a task without the split that its items are from."""
    return re.sub(r"_(val|validation|test|train)(?=_|$)", "", name)
