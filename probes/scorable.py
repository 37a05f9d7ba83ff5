"""Which of lm-eval's tasks cannot be scored, or not as the suite asks.

Works on lm-eval's objects without importing lm-eval.
"""

from __future__ import annotations

from typing import Any

from pretrain.errors import ProbeError
from probes.encode import generation_limits
from probes.suite import TaskSpec

_SCORED = ("loglikelihood", "multiple_choice", "loglikelihood_rolling", "generate_until")


def refuse(task: Any, spec: TaskSpec) -> None:
    """Names what cannot be scored, or not as the suite asks.

    Raises:
        ProbeError: says what the task is, and what to change.
    """
    if task.OUTPUT_TYPE not in _SCORED or getattr(task, "MULTIMODAL", False):
        kind = "images or sound" if getattr(task, "MULTIMODAL", False) else f"output_type {task.OUTPUT_TYPE}"
        raise ProbeError(
            f"Task {task.task_name} has {kind}, which cannot be scored at saves. Allowed are text tasks with "
            f"output_type {', '.join(_SCORED)}; run this one with lm-eval on an exported checkpoint."
        )
    if spec.ppl and task.OUTPUT_TYPE != "multiple_choice":
        raise ProbeError(
            f"Task {task.task_name} has output_type {task.OUTPUT_TYPE}, but the suite asks for ppl: true, which "
            f"chooses among answers (output_type multiple_choice). Remove ppl from the suite's entry."
        )
    if spec.generate and task.OUTPUT_TYPE != "generate_until":
        raise ProbeError(
            f"Task {task.task_name} has output_type {task.OUTPUT_TYPE}, but the suite asks for generate: true, which "
            f"is for generate_until. Remove generate from the suite's entry."
        )
    if spec.generate:
        generation_limits(task.config.generation_kwargs, name=str(task.task_name))
    if spec.num_fewshot and task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise ProbeError(
            f"Task {task.task_name} scores texts without a prompt, but the suite asks for num_fewshot: "
            f"{spec.num_fewshot}. Remove num_fewshot from the suite's entry."
        )


def refuse_programs(task: Any, spec: TaskSpec, *, allowed: bool) -> None:
    """Programs written by a model are run only where the user has said so.

    Raises:
        ProbeError: the suite asks for them, and they are not allowed.
    """
    if spec.generate and task.config.unsafe_code and not allowed:
        raise ProbeError(
            f"Task {task.task_name} runs the programs that the model writes: with limits of time and memory, but "
            f"with this user's rights and network. Set probe.allow_code_execution=true where that is acceptable, or "
            f"generate: false in the suite, which scores the given programs instead."
        )
