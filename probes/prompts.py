"""The prompts after which a model writes its answers, cut as lm-eval's HFLM cuts them; a part of the compiled suite.

What is made of the answers is for `probes.generate`, what they are worth for `probes.harness`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pretrain.errors import ProbeError
from probes.capture import Encoder, HarnessTask
from probes.encode import generation_limits
from probes.items import StoredTask


def with_prompts(stored: StoredTask, task: HarnessTask, encoder: Encoder, max_length: int) -> tuple[StoredTask, int]:
    """The same with what to generate from, where the suite asks for that, and how many prompts were cut for it.

    Args:
        stored: the task's items.
        task: the task, its requests built and judged.
        encoder: gives the tokens.
        max_length: longest model input in tokens.

    Raises:
        ProbeError: the answers cannot be generated.
    """
    if not task.generate:
        return stored, 0
    if not task.is_generative:
        raise ProbeError(
            f"Task {task.name} asks for no text that the model would write, but the suite asks for generate: true. "
            f"Remove generate from the suite's entry."
        )
    contexts, kwargs = zip(*(instance.args for instance in texts_wanted(task.task)), strict=True)
    if any(other != kwargs[0] for other in kwargs):
        raise ProbeError(
            f"Task {task.name} ends its answers by other rules from item to item (generation_kwargs), which is not "
            f"supported. Set generate: false in the suite, which scores the given answers."
        )
    until, max_new_tokens = generation_limits(kwargs[0], name=task.name)
    room = {"max_length": max_length, "max_new_tokens": max_new_tokens}
    whole = [encoder.whole(context) for context in contexts]
    prompts = [_truncated(prompt, **room, name=task.name) for prompt in whole]
    if not all(prompts):
        raise ProbeError(f"Task {task.name} has an empty prompt, after which nothing can be generated. Set add_bos.")
    num_cut = sum(len(prompt) < len(before) for prompt, before in zip(prompts, whole, strict=True))
    return dataclasses.replace(stored, prompts=prompts, until=until, max_new_tokens=max_new_tokens), num_cut


def texts_wanted(task: Any) -> list[Any]:
    """lm-eval's requests for a text that the model writes."""
    return [instance for instance in task.instances if instance.request_type == "generate_until"]


def _truncated(prompt: Sequence[int], *, max_length: int, max_new_tokens: int, name: str) -> list[int]:
    """The end of a prompt that leaves room for the answer, as HFLM cuts it.

    Raises:
        ProbeError: the answer alone fills the context.
    """
    room = max_length - max_new_tokens
    if room < 1:
        raise ProbeError(
            f"Task {name} generates up to {max_new_tokens} tokens (max_gen_toks), but the model's context is "
            f"{max_length}. Set generate: false in the suite, or train with a longer train.sequence_length."
        )
    return list(prompt[-room:])
