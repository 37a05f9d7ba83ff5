"""Keeps lm-eval from rendering the same Jinja templates at every save: most of the time its metrics would take.

Imports lm-eval (lazily).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


def remember_templates(task: Any) -> None:
    """Renders an item's choices and target once, not at every save: most of the time of `Harness.metrics`."""

    def remembering(function: Any) -> Any:
        memory: dict[int, tuple[Any, Any]] = {}  # holds the item, too, so that its id stays its own

        def remembered(doc: Any, *arguments: Any) -> Any:
            if arguments:
                return function(doc, *arguments)
            if id(doc) not in memory:
                memory[id(doc)] = doc, function(doc)
            return memory[id(doc)][1]

        return remembered

    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, remembering(getattr(task, name)))


@contextlib.contextmanager
def cached_templates() -> Iterator[None]:
    """Compiles each Jinja template once; lm-eval compiles it anew for every item, most of its time here."""
    from lm_eval import utils

    utils.env.from_string = functools.lru_cache(maxsize=None)(type(utils.env).from_string.__get__(utils.env))
    try:
        yield
    finally:
        del utils.env.from_string
