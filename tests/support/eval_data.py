"""Public benchmark items as a data folder for lm-eval's own tasks: `<dataset_path>/<dataset_name>/<split>.jsonl.gz`.

The items are not part of the repository. They lie in the folder that FINELINE_EVAL_DATA names, else in
`../shared/data/evals` beside the checkout, in one schema (question or context, choices, gold, …). Here they get back
the field names of the data sets that lm-eval 0.4.13's task files read:

| file | dataset_path / dataset_name | splits |
|---|---|---|
| hellaswag.val | Rowan/hellaswag / default | validation, train* |
| piqa.val | baber/piqa / default | validation, train* |
| arc_easy, arc_challenge (both files) | allenai/ai2_arc / ARC-Easy … | test, validation, train = validation |
| openbookqa .test .val | allenai/openbookqa / main | test, validation, train = validation |
| sciq .test .val | allenai/sciq / default | test, validation, train = validation |
| winogrande.val | allenai/winogrande / winogrande_xl | validation, train* |
| boolq, copa, cb, rte, wic .val | aps/super_glue / boolq, copa, cb, rte, wic | validation, train* |
| wsc.val | aps/super_glue / wsc.fixed | validation, train* |
| rte.val | nyu-mll/glue / rte | validation, train* |
| lambada.test | EleutherAI/lambada_openai / default | test |
| commonsenseqa.val | tau/commonsense_qa / default | validation, train* |
| siqa.val | lighteval/siqa / default | validation, train* |
| mmlu .test .val .dev | cais/mmlu / each of 57 subjects | test, validation, dev |
| truthfulqa.gen | truthfulqa/truthful_qa / multiple_choice | validation |
| ceval .val .dev | ceval/ceval-exam / each of 52 subjects | val, dev |
| cmmlu .test .dev | haonan-li/cmmlu / each of 67 subjects | test, dev |
| blimp | nyu-mll/blimp / each of 67 phenomena | train |
| gsm8k .test .train | openai/gsm8k / main | test, train |
| triviaqa.val | mandarjoshi/trivia_qa / rc.nocontext | validation, train* |
| nq_open.val | google-research-datasets/nq_open / default | validation, train* |
| humaneval.test | openai/openai_humaneval / default | test |
| mbpp.test | google-research-datasets/mbpp / full | test |

train*: lm-eval draws examples from the training split, which is not there: the last items of the file (32, or a tenth
of a small one) are held out of validation for it. TruthfulQA's mc1 and mc2 choices are put together from its correct
and incorrect answers, as its authors did; some of its 817 questions differ from the published ones in wording.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Item = dict[str, Any]

_ROOT = Path(__file__).parents[2]
_EXAMPLES = 32
"""Items held out of a validation file to draw few-shot examples from."""


def eval_source() -> Path | None:
    """The folder with the public items; None where this machine has none."""
    named = os.environ.get("FINELINE_EVAL_DATA")
    folder = Path(named) if named else _ROOT.parent / "shared" / "data" / "evals"
    return folder if (folder / "SOURCES.md").is_file() else None


def missing_reason() -> str:
    """What to say where `eval_source` finds nothing."""
    return (
        "the public benchmark items are not on this machine: FINELINE_EVAL_DATA names no folder of them, and "
        "../shared/data/evals beside the checkout holds none"
    )


def write_eval_data(folder: Path, limit: int | None = None) -> list[str]:
    """Writes the data folder.

    Args:
        folder: where to; files of the same names are replaced.
        limit: items of a split at most (of each subject); examples come from what is held out anyway.

    Returns:
        `dataset_path/dataset_name` of what was written, sorted.

    Raises:
        FileNotFoundError: the public items are not on this machine.
    """
    source = eval_source()
    if source is None:
        raise FileNotFoundError(missing_reason())
    written: set[str] = set()
    for stem, place, splits, convert in _WHOLE:
        for split, items in _splits(source, stem, splits).items():
            written.add(_write(folder, place, split, [convert(item) for item in items[:limit]]))
    for stem, path, key, splits, convert in _BY_SUBJECT:
        for file_split, split in splits.items():
            subjects: dict[str, list[Item]] = {}
            for item in _read(source / (f"{stem}.{file_split}" if file_split else stem)):
                subjects.setdefault(str(item[key]), []).append(convert(item))
            for subject, items in subjects.items():
                written.add(_write(folder, f"{path}/{subject}", split, items[:limit]))
    return sorted(written)


def _splits(source: Path, stem: str, splits: Mapping[str, str]) -> dict[str, list[Item]]:
    """Items by split of the data set; `held` as a file's split cuts the training examples off validation's end."""
    found = {split: _read(source / f"{stem}.{file}") for split, file in splits.items() if file != "held"}
    for split, file in splits.items():
        if file == "held":
            items = found["validation"]
            kept = len(items) - min(_EXAMPLES, len(items) // 10)
            found["validation"], found[split] = items[:kept], items[kept:]
    return found


def _read(path: Path) -> list[Item]:
    with gzip.open(f"{path}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(folder: Path, place: str, split: str, items: list[Item]) -> str:
    path = folder / place / f"{split}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=1, mtime=0))
    return place


def _labelled(item: Item) -> Item:
    labels = item.get("labels") or list("ABCDE"[: len(item["choices"])])
    return {"choices": {"text": item["choices"], "label": labels}, "answerKey": labels[item["gold"]]}


def _hellaswag(item: Item) -> Item:
    return {
        "ind": item["ind"],
        "activity_label": item["activity_label"],
        "ctx_a": item["ctx_a"],
        "ctx_b": item["ctx_b"],
        "ctx": item["context"],
        "endings": item["choices"],
        "source_id": item["source_id"],
        "split_type": item["split_type"],
        "label": str(item["gold"]),
    }


def _piqa(item: Item) -> Item:
    return {"goal": item["question"], "sol1": item["choices"][0], "sol2": item["choices"][1], "label": item["gold"]}


def _arc(item: Item) -> Item:
    return {"id": item["native_id"], "question": item["question"], **_labelled(item)}


def _openbookqa(item: Item) -> Item:
    return {"id": item["native_id"], "question_stem": item["question"], **_labelled(item)}


def _sciq(item: Item) -> Item:
    wrong = [choice for number, choice in enumerate(item["choices"]) if number != item["gold"]]
    return {
        "question": item["question"],
        **{f"distractor{number}": text for number, text in enumerate(wrong, 1)},
        "correct_answer": item["choices"][item["gold"]],
        "support": item["context"],
    }


def _winogrande(item: Item) -> Item:
    options = {"option1": item["choices"][0], "option2": item["choices"][1]}
    return {"sentence": item["context"], **options, "answer": str(item["gold"] + 1)}


def _boolq(item: Item) -> Item:
    question = item["question"].removesuffix("?")  # the task's template adds it
    return {"question": question, "passage": item["context"], "label": item["gold"]}


def _copa(item: Item) -> Item:
    first, second = item["choices"]
    question = {"question": item["relation"], "label": item["gold"]}
    return {"premise": item["context"], "choice1": first, "choice2": second, **question}


def _premise(item: Item) -> Item:
    return {"premise": item["premise"], "hypothesis": item["hypothesis"], "label": item["gold"]}


def _glue_rte(item: Item) -> Item:
    return {"sentence1": item["premise"], "sentence2": item["hypothesis"], "label": item["gold"]}


def _wic(item: Item) -> Item:
    fields = ("word", "sentence1", "sentence2", "start1", "end1", "start2", "end2")
    return {**{name: item[name] for name in fields}, "label": item["gold"]}


def _wsc(item: Item) -> Item:
    return {"text": item["context"], **item["target"], "label": item["gold"]}


def _lambada(item: Item) -> Item:
    return {"text": item["context"] + item["target"]}


def _commonsense_qa(item: Item) -> Item:
    known = {"id": item["native_id"], "question": item["question"], "question_concept": item["concept"]}
    return {**known, **_labelled(item)}


def _siqa(item: Item) -> Item:
    answers = dict(zip(("answerA", "answerB", "answerC"), item["choices"], strict=True))
    return {"context": item["context"], "question": item["question"], **answers, "label": str(item["gold"] + 1)}


def _truthfulqa(item: Item) -> Item:
    best = item["Best Answer"].strip()
    right, wrong = (
        [answer.strip() for answer in item[f"{kind} Answers"].split(";") if answer.strip()]
        for kind in ("Correct", "Incorrect")
    )
    right = list(dict.fromkeys([best, *right]))
    return {
        "question": item["Question"].strip(),
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)},
    }


def _triviaqa(item: Item) -> Item:
    question = item["question"].removesuffix("?")  # the task's template adds it
    answer = {"value": item["value"], "aliases": item["answers"]}
    return {"question": question, "question_id": item["native_id"], "answer": answer}


def _fields(*names: str) -> Callable[[Item], Item]:
    return lambda item: {name: item[name] for name in names}


def _mmlu(item: Item) -> Item:
    return {**_fields("question", "subject", "choices")(item), "answer": item["gold"]}


def _ceval(item: Item) -> Item:
    letters = dict(zip("ABCD", item["choices"], strict=True))
    answer = {"answer": "ABCD"[item["gold"]], "explanation": item.get("explanation", "")}
    return {"question": item["question"], **letters, **answer}


def _cmmlu(item: Item) -> Item:
    letters = dict(zip("ABCD", item["choices"], strict=True))
    return {"Question": item["question"], **letters, "Answer": "ABCD"[item["gold"]]}


def _blimp(item: Item) -> Item:
    good, bad = item["choices"]
    facts = {"field": item["field"], "linguistics_term": item["linguistics_term"], "UID": item["uid"]}
    return {"sentence_good": good, "sentence_bad": bad, **facts, "pair_id": item["pair_id"]}


_HELD = {"validation": "val", "train": "held"}
_TEST_AND_VAL = {"test": "test", "validation": "val", "train": "val"}

_WHOLE: tuple[tuple[str, str, Mapping[str, str], Callable[[Item], Item]], ...] = (
    ("hellaswag", "Rowan/hellaswag/default", _HELD, _hellaswag),
    ("piqa", "baber/piqa/default", _HELD, _piqa),
    ("arc_easy", "allenai/ai2_arc/ARC-Easy", _TEST_AND_VAL, _arc),
    ("arc_challenge", "allenai/ai2_arc/ARC-Challenge", _TEST_AND_VAL, _arc),
    ("openbookqa", "allenai/openbookqa/main", _TEST_AND_VAL, _openbookqa),
    ("sciq", "allenai/sciq/default", _TEST_AND_VAL, _sciq),
    ("winogrande", "allenai/winogrande/winogrande_xl", _HELD, _winogrande),
    ("boolq", "aps/super_glue/boolq", _HELD, _boolq),
    ("copa", "aps/super_glue/copa", _HELD, _copa),
    ("cb", "aps/super_glue/cb", _HELD, _premise),
    ("rte", "aps/super_glue/rte", _HELD, _premise),
    ("rte", "nyu-mll/glue/rte", _HELD, _glue_rte),
    ("wic", "aps/super_glue/wic", _HELD, _wic),
    ("wsc", "aps/super_glue/wsc.fixed", _HELD, _wsc),
    ("lambada", "EleutherAI/lambada_openai/default", {"test": "test"}, _lambada),
    ("commonsenseqa", "tau/commonsense_qa/default", _HELD, _commonsense_qa),
    ("siqa", "lighteval/siqa/default", _HELD, _siqa),
    ("truthfulqa", "truthfulqa/truthful_qa/multiple_choice", {"validation": "gen"}, _truthfulqa),
    ("gsm8k", "openai/gsm8k/main", {"test": "test", "train": "train"}, _fields("question", "answer")),
    ("triviaqa", "mandarjoshi/trivia_qa/rc.nocontext", _HELD, _triviaqa),
    (
        "nq_open",
        "google-research-datasets/nq_open/default",
        _HELD,
        lambda item: {"question": item["question"], "answer": item["answers"]},
    ),
    (
        "humaneval",
        "openai/openai_humaneval/default",
        {"test": "test"},
        _fields("task_id", "prompt", "canonical_solution", "test", "entry_point"),
    ),
    (
        "mbpp",
        "google-research-datasets/mbpp/full",
        {"test": "test"},
        _fields("task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"),
    ),
)
"""File stem, place in the data folder, split of the data set → split in the file's name, fields."""

_BY_SUBJECT: tuple[tuple[str, str, str, Mapping[str, str], Callable[[Item], Item]], ...] = (
    ("mmlu", "cais/mmlu", "subject", {"test": "test", "val": "validation", "dev": "dev"}, _mmlu),
    ("ceval", "ceval/ceval-exam", "subject", {"val": "val", "dev": "dev"}, _ceval),
    ("cmmlu", "haonan-li/cmmlu", "subject", {"test": "test", "dev": "dev"}, _cmmlu),
    ("blimp", "nyu-mll/blimp", "uid", {"": "train"}, _blimp),
)
"""File stem, dataset_path, field that becomes dataset_name, split in the file's name → split, fields."""
