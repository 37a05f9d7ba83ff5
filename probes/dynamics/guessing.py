"""What guessing scores on a task, by the name of the task: for records that count no choices themselves.

A run of our own does: its plan counts the choices of every item (`probes.report.run_files`). Two sources stand here.
`lm_eval_choices.csv` is made from lm-eval's task definitions, where the number of choices is written out:
`python -m tests.support.lm_eval_choices`. The rest are facts of data sets whose choices are in the data.
A name that begins with a known one (`piqa_val_rc_5shot`, `mmlu_anatomy`) is that task; of several the longest counts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LM_EVAL_CHOICES = Path(__file__).parent / "lm_eval_choices.csv"
_NAN = float("nan")

_BY_CHOICES: Mapping[int, str] = {
    2: """piqa winogrande copa storycloze xstorycloze boolq blimp wsc wsc273 winograd xwinograd wic rte multirc sst sst2
          cola mrpc qnli qqp wnli paws pawsx xcopa crows_pairs toxigen winogender strategyqa mc_taco""",
    3: "social_iqa socialiqa siqa anli anli_r1 anli_r2 anli_r3 cb mnli snli xnli pubmedqa",
    4: """hellaswag arc arc_easy arc_challenge sciq openbookqa openbook_qa swag mmlu hendryckstest cmmlu ceval agieval
          race logiqa logi_qa logiqa2 gpqa medmcqa medqa_4options headqa mutual prost belebele""",
    5: "commonsense_qa commonsenseqa csqa math_qa mathqa aqua_rat agieval_aqua_rat agieval_lsat agi_eval_lsat",
    10: "mmlu_pro leaderboard_mmlu_pro",
    0: """lambada triviaqa nq_open naturalqs webqs drop squad squadv2 coqa jeopardy gsm8k gsm_plus asdiv svamp math mgsm
          hendrycks_math minerva_math minerva_math500 leaderboard_math agieval_math agieval_gaokao_mathcloze arithmetic
          simple_arithmetic basic_arithmetic humaneval mbpp unscramble qasper babi""",
}
"""Names by the number of choices; 0 where the answer is written or a last word, which nobody guesses."""
_UNKNOWN = "record mmlu_redux truthfulqa_gen"
"""Names that begin like a known task and ask otherwise, or whose choices differ from item to item."""
_TRUTHFUL = {"mc1": 0.226, "mc2": 0.449}
"""TruthfulQA, means over its 817 questions: 1 / (1 + wrong answers), and the share of true answers among all."""
_BBH: Mapping[float, str] = {
    1 / 2: """boolean_expressions causal_judgement formal_fallacies hyperbaton navigate snarks sports_understanding
              web_of_lies""",
    1 / 3: "disambiguation_qa logical_deduction_three_objects tracking_shuffled_objects_three_objects",
    1 / 4: "movie_recommendation ruin_names temporal_sequences",
    1 / 5: "logical_deduction_five_objects penguins_in_a_table tracking_shuffled_objects_five_objects",
    1 / 6: "salient_translation_error_detection",
    1 / 7: "logical_deduction_seven_objects tracking_shuffled_objects_seven_objects",
    0.172: "date_understanding",
    0.098: "geometric_shapes",
    0.121: "reasoning_about_colored_objects",
    0.0: "dyck_languages multistep_arithmetic_two object_counting word_sorting",
}
"""BIG-Bench Hard, means over the items of a part of 1 / choices."""
_BBH_MEAN = 0.266
_BBH_NAMES = ("bbh", "bbh_fewshot", "bbh_zeroshot", "bbh_cot_fewshot", "bbh_cot_zeroshot")


def chance_by_name(name: str, *, metric: str = "acc") -> float:
    """The score of guessing of a task; nan where it is not known.

    Args:
        name: of the task, as lm-eval, OLMo's ladder or llm-foundry call it.
        metric: a share of right answers, or `mc2`.
    """
    known = _known()
    lowered = name.lower()
    found = next((known[start] for start in reversed(beginnings(lowered)) if start in known), _NAN)
    if metric == "mc2":
        return _TRUTHFUL["mc2"] if lowered.startswith("truthfulqa") else _NAN
    return found


def chance_of_choices(count: int) -> float:
    """The share of right answers among so many choices; 0 where there are none to choose from."""
    return 1 / count if count else 0.0


def beginnings(name: str) -> list[str]:
    """The beginnings of a name that end before an underscore or a hyphen, the shortest first, and the name."""
    return [name[: match.start()] for match in re.finditer(r"(?<=.)(?=[_-])", name)] + [name]


def written_facts() -> dict[str, float]:
    """The facts of this file, by name."""
    facts = {name: chance_of_choices(count) for count, names in _BY_CHOICES.items() for name in names.split()}
    facts |= dict.fromkeys(_UNKNOWN.split(), _NAN)
    facts |= {"truthfulqa": _TRUTHFUL["mc1"], "truthfulqa_mc2": _TRUTHFUL["mc2"]}  # lm-eval calls both metrics acc
    for prefix in _BBH_NAMES:
        facts[prefix] = _BBH_MEAN
        facts |= {f"{prefix}_{part}": chance for chance, parts in _BBH.items() for part in parts.split()}
    return facts


@cache
def _known() -> dict[str, float]:
    with LM_EVAL_CHOICES.open(newline="", encoding="utf-8") as file:
        counted = {row["task"].lower(): int(row["choices"]) for row in csv.DictReader(file)}
    return {name: chance_of_choices(count) for name, count in counted.items()} | written_facts()
