"""Answers that a model writes itself: a plan's prompts continued greedily, and cut as lm-eval's HFLM cuts them.

What to ask is stored in the plan (`probes.items.StoredTask`), so every rank asks the same without lm-eval; what the
texts are worth is for `probes.harness.Harness.generated_metrics`.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.engine.agree import failing_together
from pretrain.engine.base import GenerationRequest, Generator
from probes.items import StoredSuite, StoredTask
from probes.request import ProbeTokenizer

_SPACE = "\u2581"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_LOOK_BACK = 2
"""Tokens decoded beyond the longest stop string, as HFLM does: a first token loses its blank."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote at a save.

    Attributes:
        texts: by index of the task, one for each of its prompts.
        num_tokens: new tokens.
        seconds: wall time of generating.
    """

    texts: Mapping[int, Sequence[str]]
    num_tokens: int
    seconds: float


def generate_texts(stored: StoredSuite, tokenizer: ProbeTokenizer, generator: Generator) -> Generated:
    """Has the model answer every prompt of a suite; every rank calls it.

    Args:
        stored: of the plan.
        tokenizer: the one the plan was compiled with.
        generator: the model.
    """
    start = time.perf_counter()
    requests: list[GenerationRequest] = []
    with failing_together():
        for task in stored.tasks:
            done = functools.partial(_is_done, stop_strings(task, tokenizer), tokenizer)
            stop_ids = frozenset({tokenizer.eos_id} - {-1})
            requests.extend(GenerationRequest(p, task.max_new_tokens, stop_ids, done) for p in task.prompts)
        answers = generator.generate(requests)
    texts, remaining = {}, iter(answers)
    for index, task in enumerate(stored.tasks):
        if task.prompts:
            until = stop_strings(task, tokenizer)
            texts[index] = [cut(decode(tokenizer, next(remaining)), until) for _ in task.prompts]
    return Generated(texts, sum(map(len, answers)), time.perf_counter() - start)


def stop_strings(task: StoredTask, tokenizer: ProbeTokenizer) -> list[str]:
    """The task's, and the name of `</s>`, where HFLM cuts, too."""
    return task.until + ([tokenizer.piece(tokenizer.eos_id)] if tokenizer.eos_id >= 0 else [])


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in filter(None, until):
        text = text.split(stop)[0]
    return text


def decode(tokenizer: ProbeTokenizer, ids: Sequence[int]) -> str:
    """Text of ids as the exported tokenizer, and so HFLM, has it.

    SentencePiece's own differs where bytes in a row are not UTF-8: it keeps those that are.
    """
    text = ""
    pieces = [tokenizer.piece(token) for token in ids if token != tokenizer.unk_id and not tokenizer.is_control(token)]
    for are_bytes, run in itertools.groupby(pieces, lambda piece: _BYTE.fullmatch(piece) is not None):
        if not are_bytes:
            text += "".join(run).replace(_SPACE, " ")
            continue
        content = bytes(int(piece[3:5], 16) for piece in run)
        try:
            text += content.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(content)
    return text.removeprefix(" ") if tokenizer.piece(tokenizer.encode("a")[0]).startswith(_SPACE) else text


def _is_done(until: Sequence[str], tokenizer: ProbeTokenizer, ids: Sequence[int]) -> bool:
    """Whether a stop string is in the last tokens; one that is missed is cut at all the same.

    What is decoded begins before a row of bytes, not within: from its middle on it may read otherwise.
    """
    longest = max((len(stop.encode()) for stop in until), default=0)
    start = max(0, len(ids) - longest - _LOOK_BACK)
    while start and _BYTE.fullmatch(tokenizer.piece(ids[start])):
        start -= 1
    text = decode(tokenizer, ids[start:])
    return any(stop in text for stop in until if stop)
