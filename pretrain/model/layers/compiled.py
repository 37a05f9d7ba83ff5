"""Elementwise maths as plain functions of tensors, and the same functions compiled: one source for both.

What is compiled never communicates and never decides: collectives, matrix products and attention stay outside, so a
graph cannot break and a rank cannot wait for another inside of one. Lengths may vary (scoring has rows of many
lengths): the second length of a dimension makes it dynamic, and later ones compile nothing. Should there ever be more
forms than are kept, torch warns once and runs the new ones uncompiled; a run does not end over it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

_FORMS = 32

F = TypeVar("F", bound=Callable[..., Any])


def fast(function: F, compiled: bool) -> F:
    """The function itself, or its compiled form, which is made on first use and kept for the process.

    Args:
        function: a module-level function of tensors and plain numbers.
        compiled: which of the two.
    """
    return _compiled(function) if compiled else function  # type: ignore[return-value]


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo  # takes a second, and only what is compiled needs it

    # A form per format, per optional argument and per length of one; torch's limit of eight counts all together.
    torch._dynamo.config.recompile_limit = max(_FORMS, torch._dynamo.config.recompile_limit)
    return torch.compile(function)  # with fullgraph=True a form too many would be an error
