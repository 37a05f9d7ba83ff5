"""Names of exports and repositories, made from templates such as `ckpt_{index:03d}` or `{run}-{billions}B`.

`billions` is how "The Fine Line" (arXiv 2404.01204) names its checkpoints: m-a-p/Amber-Reproduce-41.94B is step
10,000 of 4,194,304 tokens each, and 218.10 is written 218.1.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

FIELDS = ("run", "step", "tokens", "billions", "index")
FALLBACK = "step_{step:08d}"
"""For saves that have no index, where a template asks for one."""
_EXAMPLE = {"run": "run", "step": 1000, "tokens": 4_194_304_000, "billions": "4.19", "index": 0}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.=+,@-]*"
_NAME, _REPOSITORY = re.compile(_PART), re.compile(f"(?:{_PART}/)?{_PART}")


def billions(tokens: int) -> str:
    """Billions of tokens with two decimals, one trailing zero left out: `41.94`, `218.1`, `100.0`."""
    text = f"{tokens / 1e9:.2f}"
    return text[:-1] if text.endswith("0") else text


def checkpoint_name(template: str, *, run: str, step: int, tokens: int, index: int | None) -> str:
    """Fills a template in.

    Args:
        template: as `template_problems` accepts it.
        run: name of the run.
        step: optimizer steps done.
        tokens: tokens trained on.
        index: place in the regular calendar (`Calendar.index`); without one, a template that asks for it gives way to
            `step_00000000`, so that step 0 or a stop between two saves has a name of its own.
    """
    if index is None and "index" in _fields(template):
        template = FALLBACK
    return template.format(run=run, step=step, tokens=tokens, billions=billions(tokens), index=index)


def has_fields(template: str) -> bool:
    """Whether a template gives each checkpoint a name of its own."""
    return bool(set(_fields(template)) - {"run"})


def template_problems(key: str, template: str) -> Iterator[str]:
    """What is wrong with `checkpoint.export_name` or `checkpoint.hub_repository`."""
    is_repository = key.endswith("repository")
    try:
        unknown = [name for name in _fields(template) if name not in FIELDS]
        text = "" if unknown else template.format(**_EXAMPLE)
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        yield f"{key}={template!r} is no template: {error}. Write, for example, 'ckpt_{{index:03d}}'."
        return
    if unknown:
        yield f"{key}={template!r} has the field {unknown[0]!r}. Fields: {', '.join(FIELDS)}."
    elif not (_REPOSITORY if is_repository else _NAME).fullmatch(text):
        what = "repository, as 'me/Amber-{billions}B'" if is_repository else "folder, as 'ckpt_{index:03d}'"
        yield f"{key}={template!r} gives {text!r}, which cannot name a {what}."
    elif is_repository and "index" in _fields(template):
        yield f"{key}={template!r}: saves beside the regular ones have no index. Use {{step}} or {{billions}}."
    elif not is_repository and not has_fields(template):
        yield f"{key}={template!r} gives every checkpoint the same name. Add a field: {', '.join(FIELDS[1:])}."


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
