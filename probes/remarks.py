"""What a compiled suite has to say of its items before anything is scored: counts, and a line for each task.

lm-eval says nothing when a prompt loses its beginning or an answer is hidden; scores look the same either way.
"""

from __future__ import annotations

from typing import Any

from probes.plan import Plan
from probes.request import TaskFacts

PROBE_ITEMS = "probe_items"
"""Kind of the event that counts cut prompts, items without an answer and items left out, by task."""

_COUNTS = {
    "items_without_answer": "num_without_gold",
    "prompts_cut": "num_cut",
    "prompts_cut_to_generate": "num_cut_to_generate",
    "references_left_out": "num_without_reference",
    "items_left_out": "num_left_out",
}
_MOST_TASKS = 5


def item_fields(plan: Plan) -> dict[str, Any]:
    """Fields of the event `probe_items`: counts by task, without those that are 0."""
    named = list(zip(plan.names, plan.tasks, strict=True))
    counts = {
        name: {own: getattr(task, field) for own, task in named if getattr(task, field)}
        for name, field in _COUNTS.items()
    }
    return {
        "suite": plan.suite,
        "plan_hash": plan.plan_hash,
        **{name: of_tasks for name, of_tasks in counts.items() if of_tasks},
    }


def remarks(plan: Plan) -> list[str]:
    """A line for each task with items that are not scored as a reader would expect."""
    found = []
    for name, task in zip(plan.names, plan.tasks, strict=True):
        sentences = _sentences(task, plan.settings.max_length)
        if sentences:
            found.append(f"{name}: {' '.join(sentences)}")
    return found


def warning(plan: Plan) -> str:
    """The lines of the first few tasks, for where space is short; empty if there is nothing to say."""
    lines = remarks(plan)
    more = f" {len(lines) - _MOST_TASKS} more tasks are in the event {PROBE_ITEMS}." if len(lines) > _MOST_TASKS else ""
    return " ".join(lines[:_MOST_TASKS]) + more


def _sentences(task: TaskFacts, max_length: int) -> list[str]:
    found = []
    if task.num_without_gold:
        rest = task.num_items - task.num_without_gold
        found.append(
            f"{task.num_without_gold} of {task.num_items} items have no answer among their choices; lm-eval's metrics "
            f"count them as wrong, metrics of the right answer (gold_bpb, correct_prob, …) have the other {rest} only."
        )
    if task.num_cut:
        found.append(
            f"The prompts of {task.num_cut} of {task.num_items} items are cut: with their answers they exceed the "
            f"context of {max_length} tokens and lose their beginning, as in lm-eval."
        )
    if task.num_cut_to_generate:
        found.append(
            f"{task.num_cut_to_generate} of {task.num_items} prompts are cut where the model writes the answer: they "
            f"lose their beginning, so that the context of {max_length} tokens has room for it, as in lm-eval."
        )
    if task.num_without_reference:
        found.append(
            f"{task.num_without_reference} of {task.num_items} reference answers cannot be scored: their metrics are "
            f"of the other items, those of written answers are of all."
        )
    if task.num_left_out:
        found.append(
            f"{task.num_left_out} of {task.num_items + task.num_left_out} items cannot be scored and are left out."
        )
    return found
