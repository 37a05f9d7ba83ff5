"""Ten tasks' items as lengths alone: random tokens, as many as the published tasks have, so that no data is needed.

Mean lengths of contexts and choices are solved from each task's published totals: tokens with one forward pass a
choice, and with the context computed once (AllenAI's OLMo-in-loop-evals 0.8.3, GPT-NeoX tokenizer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.request import Request


@dataclass(frozen=True, slots=True)
class Form:
    """Lengths of a task: items, choices of each, mean tokens of a context and of a choice.

    Attributes:
        shared: whether the choices of an item continue one context.
    """

    items: int
    choices: int
    context: float
    choice: float
    shared: bool = True


TASKS = {
    "hellaswag": Form(10_042, 4, 51.2, 30.4),
    "piqa": Form(1_838, 2, 13.7, 22.8),
    "arc_easy": Form(2_376, 4, 27.7, 4.3),
    "arc_challenge": Form(1_172, 4, 31.5, 5.8),
    "winogrande": Form(1_267, 2, 14.5, 8.0, shared=False),
    "boolq": Form(3_270, 2, 137.7, 1.0),
    "lambada": Form(5_153, 1, 75.6, 2.0),
    "openbookqa": Form(500, 4, 11.3, 4.2),
    "sciq": Form(1_000, 4, 105.0, 2.0),
    "copa": Form(100, 2, 10.0, 5.0),
}


def draw_requests(*, share: float, vocab_size: int, seed: int = 0) -> list[Request]:
    """Requests of all tasks; lengths are Poisson around their means, at least one token.

    Args:
        share: of each task's items, at least two.
        vocab_size: tokens are drawn from 3 up to it.
        seed: of lengths and tokens.
    """
    rng = np.random.default_rng(seed)

    def tokens(mean: float) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(3, vocab_size, max(1, rng.poisson(mean)))))

    found = []
    for number, form in enumerate(TASKS.values()):
        for item in range(max(2, round(share * form.items))):
            context = tokens(form.context)
            for choice in range(form.choices):
                context = context if form.shared or not choice else tokens(form.context)
                answer = tokens(form.choice)
                found.append(Request(number, item, choice, context, answer, 1, 1, is_choice=True, is_gold=not choice))
    return found
