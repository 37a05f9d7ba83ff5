"""What is known of a task by its name alone: its domain and the score of guessing.

For records that do not say it themselves (lm-eval results, published tables). A run's own record does: its suite names
the domains and its plan counts the choices. Domains follow the bundled suites of `configs/probes`.
"""

from __future__ import annotations

import re
from functools import cache

from probes.dynamics.guessing import chance_by_name
from probes.dynamics.metrics import is_score, plain

_DOMAINS = {
    "piqa": "commonsense",
    "hellaswag": "commonsense",
    "winogrande": "commonsense",
    "copa": "commonsense",
    "social_iqa": "commonsense",
    "socialiqa": "commonsense",
    "siqa": "commonsense",
    "commonsense_qa": "commonsense",
    "csqa": "commonsense",
    "storycloze": "commonsense",
    "arc_easy": "knowledge",
    "arc_challenge": "knowledge",
    "sciq": "knowledge",
    "openbookqa": "knowledge",
    "openbook_qa": "knowledge",
    "boolq": "knowledge",
    "triviaqa": "knowledge",
    "nq_open": "knowledge",
    "mmlu": "examination",
    "hendryckstest": "examination",
    "cmmlu": "examination",
    "ceval": "examination",
    "agieval": "examination",
    "lambada": "language",
    "blimp": "language",
    "wsc": "language",
    "wic": "language",
    "race": "understanding",
    "record": "understanding",
    "anli_r1": "understanding",
    "anli_r2": "understanding",
    "anli_r3": "understanding",
    "cb": "understanding",
    "logiqa": "reasoning",
    "rte": "reasoning",
    "drop": "reasoning",
    "bbh": "reasoning",
    "gsm8k": "mathematics",
    "math": "mathematics",
    "humaneval": "code",
    "mbpp": "code",
    "truthfulqa": "truthfulness",
    "crows_pairs": "bias",
    "c4_en": "loss",  # held-out text, `LOSS_DOMAIN` of the table
    "wikitext": "loss",
    "pile": "loss",
}
_BY_LENGTH = sorted(_DOMAINS, key=len, reverse=True)
_PREFIX = re.compile(r"^fineline_")


def domain_of(name: str, *, otherwise: str = "other") -> str:
    """The domain of a task whose name begins with a known one (`piqa_val_rc_5shot`, `mmlu_anatomy`).

    Args:
        name: of the task.
        otherwise: the domain of one that is not known.
    """
    plain_name = _PREFIX.sub("", name.lower())
    for known in _BY_LENGTH:
        if plain_name == known or plain_name.startswith((known + "_", known + "-")):
            return _DOMAINS[known]
    return otherwise


def chance_of(name: str, metric: str) -> float:
    """The score of guessing; nan for a metric or task of which that is not known."""
    kind = plain(metric)
    if kind.endswith("_rescaled"):
        return 0.0
    if not is_score(kind):
        return float("nan")
    chance = chance_by_name(_PREFIX.sub("", name.lower()), metric=kind)
    # Part of an answer can be right by luck, but for answers that nobody guesses.
    return chance if kind != "f1" or chance == 0.0 else float("nan")


def is_twin(first: str, second: str) -> bool:
    """Whether two tasks ask the same thing of other items (`…_val_…` and `…_test_…`): no siblings, but copies."""
    return first == second or without_split(first) == without_split(second)


@cache
def without_split(name: str) -> str:
    """The name of a task without the split that its items are from."""
    return re.sub(r"_(val|validation|test|train)(?=_|$)", "", name)
