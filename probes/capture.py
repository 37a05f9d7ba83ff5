"""From lm-eval's request objects to plain `Request`s: what can be scored, which answers are right.

Works on lm-eval's objects without importing lm-eval (that is for `probes.harness`, `probes.encode` and
`probes.lm_eval_metrics`). Each item becomes requests by the kinds of lm-eval's requests for it:

- `loglikelihood`: lm-eval's own pairs of context and continuation.
- `loglikelihood_rolling`: a text in windows as long as the model allows, one request each, summed afterwards.
- `generate_until`: the gold answer after the prompt, in place of a generated one.
- beside each choice, where the suite says `ppl: true`, prompt and answer as one text (OpenCompass's PPL mode).

A task that is a Python class may ask for several kinds at once (SQuAD 2: an answer, and how likely "unanswerable" is).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pretrain.errors import ProbeError
from probes.request import Request, TaskFacts, text_lengths

Encoded = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""

_CERTAIN, _IMPOSSIBLE = 0.0, -1e4
"""Log-likelihoods of an answer given for sure and of all others: exp gives exactly 1 and 0."""
_PROGRAM_FIELDS = ("canonical_solution", "code")
"""Where the items of HumanEval and MBPP hold a program that solves them; the target is the test it must pass."""


class Encoder(Protocol):
    """Turns texts into tokens as lm-eval's HFLM does; see `probes.encode`."""

    def pair(self, context: str, continuation: str) -> Encoded:
        """A context, at least a beginning-of-text token, and a continuation."""
        ...

    def windows(self, text: str, *, max_length: int) -> list[Encoded]:
        """A text whose every token is a continuation's exactly once, with as much context as fits."""
        ...

    def whole(self, text: str) -> list[int]:
        """A text as one."""
        ...


@dataclass(slots=True)
class Captured:
    """What becomes of a task's items.

    Attributes:
        requests: by item and number, in the order of the task's instances (those for PPL mode after the others of
            their item).
        left_out: a sentence for each item that cannot be scored.
        without_reference: a sentence for each item whose answer the model writes, but whose reference cannot be scored.
    """

    requests: list[Request] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    without_reference: list[str] = field(default_factory=list)


@dataclass(slots=True)
class HarnessTask:
    """An lm-eval task with its requests built.

    Attributes:
        task: lm-eval's Task; `task.instances` are the requests.
        domain: domain in the suite.
        name: lm-eval's name of the task (kept here: lm-eval draws random numbers each time it is asked).
        ppl: OpenCompass's PPL mode is wanted, too.
        generate: the model's own answers are wanted, too.
        line: the suite's line that it came with, see `probes.suite.Suite.lines`.
    """

    task: Any
    domain: str
    name: str
    ppl: bool = False
    line: str = ""
    generate: bool = False

    @property
    def num_fewshot(self) -> int:
        """Examples in the prompt."""
        return int(self.task.get_config("num_fewshot") or 0)

    @property
    def is_generative(self) -> bool:
        """Whether lm-eval's metrics of the task need answers that the model writes."""
        return any(instance.request_type == "generate_until" for instance in self.task.instances)

    @property
    def output_type(self) -> str:
        """lm-eval's; of a class that builds its requests itself, what they are."""
        own = str(self.task.OUTPUT_TYPE)
        if self.is_generative or own not in ("generate_until", "None"):
            return "generate_until" if self.is_generative else own
        return "multiple_choice" if any(instance.idx for instance in self.task.instances) else "loglikelihood"

    def facts(self, captured: Captured, *, max_length: int) -> TaskFacts:
        """What measurements say of the task, given its requests and the longest model input in tokens."""
        items = {instance.doc_id for instance in self.task.instances}
        with_gold = {request.item for request in captured.requests if request.is_gold}
        cut = {one.item for one in captured.requests if len(one.context) + len(one.continuation) > max_length + 1}
        output_type, generated = self.output_type, self.is_generative
        known = output_type == "multiple_choice" and not _judges_itself(self.task)
        return TaskFacts(
            name=self.name,
            domain=self.domain,
            num_fewshot=self.num_fewshot,
            num_items=len(items),
            output_type=output_type,
            not_computed=", ".join(metric_names(self.task)) if generated and not self.generate else "",
            num_without_gold=len(items - with_gold) if known else 0,
            num_without_reference=len(captured.without_reference),
            num_left_out=len(captured.left_out),
            num_cut=len(cut),
            line=self.line or self.name,
        )


def metric_names(task: Any) -> list[str]:
    """lm-eval's names of a task's metrics; none if the task cannot say."""
    try:
        return list(task.aggregation())
    except Exception:  # noqa: BLE001 (other people's code; a task without names is scored all the same)
        return []


def by_item(instances: Sequence[Any]) -> dict[int, list[Any]]:
    """Instances of each item, sorted by their number within it."""
    items: dict[int, list[Any]] = {}
    for instance in instances:
        items.setdefault(instance.doc_id, []).append(instance)
    for members in items.values():
        members.sort(key=lambda instance: instance.idx)
    return items


def task_requests(task: HarnessTask, index: int, encoder: Encoder, *, max_length: int) -> Captured:
    """Requests of one task; items that cannot be scored are taken out of the task's instances.

    Args:
        task: the task.
        index: its index in the suite.
        encoder: gives the tokens.
        max_length: longest model input in tokens.

    Raises:
        ProbeError: no item is left, or none has a right answer.
    """
    captured = Captured()
    kept: list[Any] = []
    for item, instances in by_item(task.task.instances).items():
        made = _item_requests(task, (index, item), instances, encoder, max_length)
        if isinstance(made, str):
            captured.left_out.append(f"{task.name}, item {item}: {made}")
            continue
        requests, problem = made
        if problem:
            captured.without_reference.append(f"{task.name}, item {item}, only its reference answer: {problem}")
        captured.requests.extend(requests)
        kept.extend(instances)
    if not kept:
        raise ProbeError(
            f"Task {task.name} has no item that can be scored with sequences of {max_length} tokens; "
            f"the first reason: {captured.left_out[0]}. Remove it from the suite."
        )
    task.task._instances = kept
    facts = task.facts(captured, max_length=max_length)
    if facts.num_without_gold == facts.num_items:
        raise ProbeError(
            f"None of the {facts.num_items} items of task {task.name} has its right answer among its choices: the "
            f"labels of this split may be hidden. Use a split that has them, or remove the task from the suite."
        )
    return captured


def _item_requests(
    task: HarnessTask, place: tuple[int, int], instances: Sequence[Any], encoder: Encoder, max_length: int
) -> tuple[list[Request], str] | str:
    """Requests that answer those of lm-eval for an item, or why it cannot be scored.

    An item whose answer the model writes needs no reference answer: beside the requests is why it has none.
    """
    if all(instance.request_type == "loglikelihood" for instance in instances):
        answers = _answers(task, place, instances, encoder, max_length)
        return answers if isinstance(answers, str) else (answers, "")
    kinds: dict[str, Callable[..., list[Request] | str]] = {
        "loglikelihood": _extra_answer,
        "loglikelihood_rolling": _windows,
        "generate_until": _gold_answer,
    }
    requests: list[Request] = []
    problem = ""
    for number, instance in enumerate(instances):
        made = kinds[instance.request_type](task, (*place, number), instance, encoder, max_length)
        if not isinstance(made, str):
            requests.extend(made)
        elif task.generate and instance.request_type == "generate_until":
            problem = made
        else:
            return made
    return requests, problem


def _answers(
    task: HarnessTask, place: tuple[int, int], instances: Sequence[Any], encoder: Encoder, max_length: int
) -> list[Request] | str:
    """lm-eval's own requests, and those of PPL mode."""
    encoded = [encoder.pair(*instance.args) for instance in instances]
    problem = _unscorable(encoded, max_length)
    if problem:
        return problem
    num_choices, right = _right_answers(task.task, instances)
    if right is None:
        return "its right answer is missing"
    requests, wholes = [], []
    for number, (instance, pair) in enumerate(zip(instances, encoded, strict=True)):
        context, continuation = map(tuple, pair)
        lengths = text_lengths(instance.args[1])
        is_choice, is_gold = number < num_choices, number in right
        requests.append(Request(*place, number, context, continuation, *lengths, is_choice, is_gold))
        if task.ppl and is_choice:
            tokens = tuple(encoder.whole("".join(instance.args))[-(max_length + 1) :])
            if len(tokens) < 2:
                return f"prompt and answer {number} are a single token, of which there is no perplexity"
            wholes.append(Request(*place, number, tokens[:1], tokens[1:], *lengths, False, is_gold, is_whole=True))
    return requests + wholes


def _extra_answer(
    task: HarnessTask, place: tuple[int, int, int], instance: Any, encoder: Encoder, max_length: int
) -> list[Request] | str:
    """A continuation beside other kinds of requests: the task's own metrics need it, it is no choice."""
    pair = encoder.pair(*instance.args)
    problem = _unscorable([pair], max_length)
    if problem:
        return problem
    context, continuation = map(tuple, pair)
    return [Request(*place, context, continuation, *text_lengths(instance.args[1]), False, False)]


def _windows(
    task: HarnessTask, place: tuple[int, int, int], instance: Any, encoder: Encoder, max_length: int
) -> list[Request] | str:
    """The windows of a text, which together answer one of lm-eval's requests."""
    (text,) = instance.args
    found = encoder.windows(text, max_length=max_length)
    if not found:
        return "its text is empty"
    requests = []
    for number, (context, continuation) in enumerate(found):
        lengths = (len(text), len(text.encode("utf-8", errors="surrogatepass"))) if number == 0 else (0, 0)
        requests.append(Request(*place, tuple(context), tuple(continuation), *lengths, False, False))
    return requests


def _gold_answer(
    task: HarnessTask, place: tuple[int, int, int], instance: Any, encoder: Encoder, max_length: int
) -> list[Request] | str:
    """The gold answer after the prompt that a model would continue."""
    try:
        gold = gold_continuation(task.task, instance.doc)
    except ProbeError:
        if not task.generate:
            raise
        gold = ""
    if not gold.strip():
        return "its gold answer is missing or empty"
    pair = encoder.pair(instance.args[0], gold)
    problem = _unscorable([pair], max_length)
    if problem:
        return problem
    context, continuation = map(tuple, pair)
    return [Request(*place, context, continuation, *text_lengths(gold), True, True)]


def gold_continuation(task: Any, doc: Any) -> str:
    """What follows the prompt of a generative task where the gold answer is given; empty if there is none.

    The answer is the task's target, of several accepted ones the first, after the delimiter that lm-eval puts
    before the answers of examples. For tasks that run programs the target is a test: their answer is the item's
    own program, which continues the prompt directly.
    """
    if task.config.unsafe_code:
        gold = next((doc[field] for field in _PROGRAM_FIELDS if doc.get(field)), None)
        if gold is None:
            fields = " or ".join(_PROGRAM_FIELDS)
            raise ProbeError(f"Task {task.task_name} runs programs, but its items have no {fields} to score instead.")
        return str(gold)
    gold = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(gold, int):
        choices = task.doc_to_choice(doc)
        if not -len(choices) <= gold < len(choices):
            raise ProbeError(
                f"Task {task.task_name}: an item's answer has the index {gold}, but it has {len(choices)} choices, "
                f"numbered from 0 to {len(choices) - 1}. Correct the item or doc_to_target: {doc}"
            )
        gold = choices[gold]
    if isinstance(gold, (list, tuple)):
        gold = next(iter(gold), None)
    if gold is None or not str(gold).strip():
        return ""
    # A prompt that ends in lm-eval's gen_prefix has had its delimiter: one blank follows, unless there is one.
    prefix = task.doc_to_prefix(doc)
    if prefix:
        return str(gold) if prefix[-1].isspace() or str(gold)[0].isspace() else f" {gold}"
    return f"{task.config.target_delimiter}{gold}"


def _unscorable(encoded: Sequence[Encoded], max_length: int) -> str:
    """Why an item cannot be scored; HFLM fails on these with an assertion."""
    for number, (context, continuation) in enumerate(encoded):
        if not continuation:
            return f"continuation {number} is empty"
        if not context:
            return f"context {number} is empty"
        if len(continuation) > max_length:
            return f"continuation {number} has {len(continuation)} tokens; the model's limit is {max_length}"
    return ""


def _right_answers(task: Any, instances: Sequence[Any]) -> tuple[int, set[int] | None]:
    """Number of choices of an item, and the right ones (none where unknown); None if lm-eval would fail for lack."""
    if _judges_itself(task):
        return len(instances), _asked_of_the_task(task, instances)
    if task.OUTPUT_TYPE == "loglikelihood":
        return 1, {0}
    doc = instances[0].doc
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    if gold is None:
        return len(choices), None
    found = {choices.index(one) if one in choices else -1 if isinstance(one, str) else one for one in _listed(gold)}
    return len(choices), {one for one in found if isinstance(one, int) and 0 <= one < len(choices)}


def _judges_itself(task: Any) -> bool:
    """Whether a function or a class of the task's own says what its answers are worth."""
    own: Any = type(task).process_results
    return callable(task.config.process_results) or own.__qualname__ != "ConfigurableTask.process_results"


def _listed(gold: Any) -> list[Any]:
    return gold if isinstance(gold, list) else [gold]


def _asked_of_the_task(task: Any, instances: Sequence[Any]) -> set[int]:
    """The choices for which a task's own `process_results` gives full accuracy when they are answered for sure.

    It alone knows what its answers mean (TruthfulQA's mc2 has a set of right ones). Nothing if it does not say.
    """
    right = set()
    for number in range(len(instances)):
        results = [(_CERTAIN if other == number else _IMPOSSIBLE, other == number) for other in range(len(instances))]
        try:
            accuracy = float(task.process_results(instances[0].doc, results)["acc"])
        except Exception:  # noqa: BLE001 (task files hold other people's code, asked something unusual here)
            return set()
        if accuracy == 1.0:
            right.add(number)
    return right


def describe_task(task: HarnessTask) -> str:
    """Definition, items and prompts of a task as JSON, the same on every machine; for hashing.

    Where the data lies does not count, what it holds does.
    """
    definition = dict(task.task.dump_config())
    for key in ("dataset_path", "dataset_name", "dataset_kwargs", "metadata"):
        definition.pop(key, None)
    described = {
        "name": task.name,
        "version": str(task.task.VERSION),
        "num_fewshot": task.num_fewshot,
        "definition": definition,
        "prompts": [(i.doc_id, i.idx, list(i.args)) for i in task.task.instances],
        "items": [members[0].doc for members in by_item(task.task.instances).values()],
    }
    text = json.dumps(described, sort_keys=True, default=_describe_value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _describe_value(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)
