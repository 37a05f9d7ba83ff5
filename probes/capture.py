"""From lm-eval's request objects and their tokens to plain `Request`s: what can be scored, which answer is right.

Works on lm-eval's objects without importing lm-eval (that is for `probes.harness` alone).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.errors import ProbeError
from probes.request import Request, text_lengths

Encoded = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""


@dataclass(slots=True)
class HarnessTask:
    """An lm-eval task with its requests built.

    Attributes:
        task: lm-eval's Task; `task.instances` are the requests.
        domain: domain in the suite.
        name: lm-eval's name of the task (kept here: lm-eval draws random numbers each time it is asked).
    """

    task: Any
    domain: str
    name: str

    @property
    def num_fewshot(self) -> int:
        """Examples in the prompt."""
        return int(self.task.get_config("num_fewshot") or 0)


def by_item(instances: Sequence[Any]) -> dict[int, list[Any]]:
    """Instances of each item, sorted by their number within it."""
    items: dict[int, list[Any]] = {}
    for instance in instances:
        items.setdefault(instance.doc_id, []).append(instance)
    for members in items.values():
        members.sort(key=lambda instance: instance.idx)
    return items


def task_requests(
    task: HarnessTask, index: int, encoded: Sequence[Encoded], *, max_length: int
) -> tuple[list[Request], list[str]]:
    """Requests of one task; items that cannot be scored are taken out of the task's instances.

    Args:
        task: the task.
        index: its index in the suite.
        encoded: tokens of each of its instances.
        max_length: longest model input in tokens.

    Returns:
        The requests by item and number, in the order that `task.task.instances` then has, and a sentence for
        each item left out.

    Raises:
        ProbeError: no item is left.
    """
    tokens = {id(instance): pair for instance, pair in zip(task.task.instances, encoded, strict=True)}
    requests: list[Request] = []
    skipped: list[str] = []
    kept: list[Any] = []
    for item, instances in by_item(task.task.instances).items():
        problem = _unscorable([tokens[id(instance)] for instance in instances], max_length)
        if problem:
            skipped.append(f"{task.name}, item {item}: {problem}")
            continue
        num_choices, gold = _gold(task.task, instances)
        for number, instance in enumerate(instances):
            context, continuation = map(tuple, tokens[id(instance)])
            lengths = text_lengths(instance.args[1])
            is_choice, is_gold = number < num_choices, number == gold
            requests.append(Request(index, item, number, context, continuation, *lengths, is_choice, is_gold))
        kept.extend(instances)
    if not kept:
        raise ProbeError(
            f"Task {task.name} has no item that can be scored with sequences of {max_length} tokens; "
            f"the first reason: {skipped[0]}. Remove it from the suite."
        )
    task.task._instances = kept
    return requests, skipped


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


def _gold(task: Any, instances: Sequence[Any]) -> tuple[int, int | None]:
    """Number of choices of an item, and the right one; None where that is not exactly one known choice."""
    if callable(task.config.process_results):
        return len(instances), None  # The task alone knows what its answers mean.
    if task.OUTPUT_TYPE == "loglikelihood":
        return 1, 0
    doc = instances[0].doc
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    if isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    valid = isinstance(gold, int) and 0 <= gold < len(choices)
    return len(choices), gold if valid else None


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
